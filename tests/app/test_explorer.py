import json
import re
from itertools import product

import pytest
from PIL import Image, ImageChops

from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer, config_of
from DeepCache.bench.variants import parse_variant
from DeepCache.config import DeepCacheConfig
from DeepCache.plan import Plan
from DeepCache.schedule import ExplicitSchedule, Step, StepSchedule
from tests.report.synthetic_results import ablation, benchmark, write

GRID = [f"I={interval} B={branch}{more}" for interval, branch, more in product((2, 3, 5), (0, 1), ("", " linear"))]
REUSED = ["I=3 B=0 linear guidance-reuse", "I=5 B=0 linear guidance-reuse"]
TITLE = "DDIMScheduler, 50 steps"


@pytest.fixture(scope="module")
def result():
    groups = (("DDIMScheduler", 50), ("model", 25))
    return ablation(labels=[*GRID, *REUSED], groups=groups, samples=4, fewer=(28, 21, 12))


@pytest.fixture(scope="module")
def path(result, tmp_path_factory):
    return write(result, tmp_path_factory.mktemp("ablation") / "result.json")


@pytest.fixture(scope="module")
def explorer(path):
    return Explorer.from_file(path)


@pytest.fixture
def changed(result, tmp_path):
    """Writes the ablation after a change, with images or without."""

    def changed(change, images=True):
        copy = json.loads(json.dumps(result))
        change(copy)
        path = tmp_path / "result.json"
        return write(copy, path) if images else path.write_text(json.dumps(copy)) and path

    return changed


def cell_of(result, label, group=0):
    return next(cell for cell in result["groups"][group]["cells"] if cell["label"] == label)


def identical(one, other):
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def test_groups_have_titles_and_schedulers(explorer):
    assert [(group.title, group.scheduler, group.measured.images) for group in explorer.groups] == [
        (TITLE, "DDIMScheduler", 6),
        ("model, 25 steps", None, 6),
    ]
    assert explorer.groups[0].model == "shapes"
    assert explorer.group("model, 25 steps") is explorer.groups[1]


def test_a_group_has_a_heat_map_for_each_kind_of_settings_in_the_order_of_the_file(explorer):
    heat_maps = explorer.groups[0].heat_maps
    assert {title: (each.intervals, each.branches) for title, each in heat_maps.items()} == {
        "re-use, uniform": ([2, 3, 5], [0, 1]),
        "linear forecast, uniform": ([2, 3, 5], [0, 1]),
        "linear forecast, uniform, guidance reuse": ([3, 5], [0]),
    }
    assert next(iter(heat_maps)) == "re-use, uniform"


def test_the_settings_of_a_cell_are_those_of_its_label(explorer):
    for cell in explorer.groups[0].cells:
        expected = parse_variant(cell["label"]).config if cell["method"] == "DeepCache" else DeepCacheConfig(1)
        assert config_of(cell) == expected


def test_a_plan_and_a_schedule_are_in_no_heat_map_but_can_be_chosen(changed):
    plan = Plan(StepSchedule((Step(True), Step(False))), {}, {})

    def add_a_plan(result):
        cell = result["groups"][0]["cells"][0]
        added = [
            {**cell, "label": "plan mine", "config": DeepCacheConfig(plan=plan).to_dict()},
            {**cell, "label": "plan other", "config": DeepCacheConfig(schedule=ExplicitSchedule((0, 2))).to_dict()},
        ]
        result["groups"][0]["cells"] += added

    explorer = Explorer.from_file(changed(add_a_plan))
    group = explorer.groups[0]
    assert config_of(group.named("plan mine")).plan == plan
    assert config_of(explorer.choose(group, "plan other").cell).schedule.at == (0, 2)
    in_heat_maps = [cell["label"] for each in group.heat_maps.values() for cell in each.cells.values()]
    assert sorted(in_heat_maps) == sorted([*GRID, *REUSED])


def test_a_choice_has_the_images_of_each_setting_cut_from_their_strips(explorer, result, path):
    group = explorer.groups[0]
    choice = explorer.choose(group, "I=3 B=1")
    assert choice.note == ""
    cells = [result["groups"][0]["reference"], cell_of(result, "I=3 B=1"), cell_of(result, "21 steps")]
    strips = [Image.open(path.parent / one["samples"]).convert("RGB") for one in cells]
    # Three prompts and two seeds: the fourth image is the second one of the first prompt.
    prompts = ["a red circle", "a blue square", "a green star", "a red circle"]
    assert [sample.prompt for sample in choice.samples] == prompts
    for number, sample in enumerate(choice.samples):
        assert [caption for caption, _, _ in sample.images] == ["No caching", "DeepCache", "21 steps"]
        for (_, image, psnr), cell, strip in zip(sample.images, cells, strips, strict=True):
            assert identical(image, strip.crop((64 * number, 0, 64 * (number + 1), 64)))
            assert psnr == (cell["psnr"]["values"][number] if cell is not cells[0] else None)
    (_, original, _), (_, cached, _), _ = choice.samples[0].images
    assert not identical(cached, original)


def test_a_choice_has_its_figures_as_text(changed):
    def set_figures(result):
        cell, fewer = cell_of(result, "I=3 B=0"), cell_of(result, "21 steps")
        cell |= {"mac_share": 0.422, "seconds": 9.0, "pattern": "F..F.", "front": True, "dominated_by": None}
        cell |= {"psnr": {"mean": 50.0, "confidence": [48.5, 51.5], "p5": 50.0, "values": [50.0]}, "lpips": None}
        cell["ssim"] = {"mean": 0.99, "confidence": [0.98, 1.0], "p5": 0.99, "values": [0.99]}
        fewer |= {"mac_share": 0.42, "seconds": 12.0, "pattern": "FF", "front": False}
        fewer |= {"psnr": {"mean": 45.0, "confidence": [44.0, 46.0], "p5": 45.0, "values": [45.0]}, "ssim": None}
        fewer["dominated_by"] = {"label": "I=3 B=0", "psnr_gain": 5.0, "confidence": [4.0, 6.0]}
        result["groups"][0]["reference"]["seconds"] = 24.0

    explorer = Explorer.from_file(changed(set_figures))
    choice = explorer.choose(explorer.groups[0], "I=3 B=0")
    assert choice.columns == ["I=3 B=0", "21 steps, no caching", "no caching"]
    assert [[text.replace("\xa0", " ") for text in row] for row in choice.rows] == [
        ["MACs of the U-Net", "42.2 %", "42.0 %", "100 %"],
        ["Speed-up by MACs", "2.37×", "2.38×", "1.00×"],
        ["PSNR, dB, mean ± 95 % confidence interval", "50.00 ± 1.50", "45.00 ± 1.00", "–"],
        ["SSIM, mean ± 95 % confidence interval", "0.9900 ± 0.0100", "–", "–"],
        ["Seconds per image, one run", "1.50 s", "2.00 s", "4.00 s"],
        ["Steps", "2 full, 3 shallow", "2 full", "50 full"],
        ["Pareto front", "on it", "no: I=3 B=0 has 5.00 dB more at the same cost or less", "–"],
    ]


def test_without_fewer_steps_a_choice_has_two_columns(changed):
    def leave_out_fewer_steps(result):
        cells = result["groups"][0]["cells"]
        result["groups"][0]["cells"] = [cell for cell in cells if cell["method"] == "DeepCache"]

    explorer = Explorer.from_file(changed(leave_out_fewer_steps))
    choice = explorer.choose(explorer.groups[0], "I=3 B=0")
    assert choice.columns == ["I=3 B=0", "no caching"]
    assert {len(row) for row in choice.rows} == {3}
    assert [len(sample.images) for sample in choice.samples] == [2] * 4


def test_missing_images_are_reported_beside_the_figures(explorer, changed):
    def keep_few(result):
        cell_of(result, "I=3 B=0")["samples"] = None
        cell_of(result, "I=5 B=0")["samples"] = "samples/gone.png"
        cell_of(result, "12 steps")["samples"] = None

    path = changed(keep_few, images=False)
    for group in json.loads(path.read_text())["groups"]:
        for one in [group["reference"], *group["cells"]]:
            if one["samples"] not in (None, "samples/gone.png"):
                target = path.parent / one["samples"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((explorer.source.path.parent / one["samples"]).read_bytes())
    other = Explorer.from_file(path)
    group = other.groups[0]
    found = {label: other.choose(group, label) for label in ("I=3 B=0", "I=5 B=0", REUSED[1])}
    assert [len(choice.samples) for choice in found.values()] == [0, 0, 4]
    assert found["I=3 B=0"].note == "Images of DeepCache are missing: no images are kept."
    assert "'samples/gone.png'" in found["I=5 B=0"].note
    assert found[REUSED[1]].note == "Images of 12 steps are missing: no images are kept."
    assert [caption for caption, *_ in found[REUSED[1]].samples[0].images] == ["No caching", "DeepCache"]
    assert all(choice.rows for choice in found.values())


def test_a_damaged_image_is_reported(changed):
    path = changed(lambda result: None)
    explorer = Explorer.from_file(path)
    (path.parent / "samples/0/I=3_B=0.png").write_text("not an image")
    choice = explorer.choose(explorer.groups[0], "I=3 B=0")
    assert choice.note == "Images of DeepCache are missing: 'samples/0/I=3_B=0.png' is damaged or not a PNG."


def test_a_link_to_a_result_has_its_images(path, tmp_path):
    (tmp_path / "link.json").symlink_to(path)
    explorer = Explorer.from_file(tmp_path / "link.json")
    assert len(explorer.choose(explorer.groups[0], "I=3 B=0").samples) == 4


@pytest.mark.parametrize("name", ["../secret.png", "samples/../../secret.png", "/etc/secret.png", "way-out/secret.png"])
def test_an_image_outside_the_folder_is_not_read(changed, tmp_path, name):
    (tmp_path / "way-out").symlink_to(tmp_path.parent)
    path = changed(lambda result: None)
    (tmp_path.parent / "secret.png").write_bytes((path.parent / "samples/0/I=3_B=0.png").read_bytes())
    explorer = Explorer.from_file(changed(lambda result: cell_of(result, "I=3 B=0").update(samples=name), images=False))
    choice = explorer.choose(explorer.groups[0], "I=3 B=0")
    assert choice.samples == []
    assert choice.note == f"Images of DeepCache are missing: the path '{name}' is outside the folder of 'result.json'."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result.pop("device"), "is damaged at its top: 'device' is a required property"),
        (
            lambda result: cell_of(result, "I=3 B=0")["config"].update(cache_interval=0),
            "is damaged: cache_interval must be 1 or more, got 0",
        ),
        (
            lambda result: cell_of(result, "I=3 B=0")["config"].update(forecast=3),
            "is damaged: forecast must be a str, got 3",
        ),
        (lambda result: cell_of(result, "I=3 B=0").update(config=None), "is damaged: a DeepCacheConfig must be a JSON"),
        (
            lambda result: cell_of(result, "21 steps").update(mac_share=0),
            "is damaged: the cost of '21 steps' must be above 0, got 0",
        ),
        (lambda result: result["settings"].update(prompts=[]), "is damaged: it has no prompts"),
        (
            lambda result: [group.update(cells=[], reference=None) for group in result["groups"]],
            "has no measurement of DeepCache yet. Let `deepcache ablate` finish",
        ),
        (
            lambda result: result["settings"].update(guidances=[float("nan")]),
            "contains NaN, a number that JSON does not have",
        ),
        (lambda result: result.update(format="DeepCache ablation 0"), "is not a result of `deepcache benchmark` or"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(changed, change, message):
    path = changed(change, images=False)
    with pytest.raises(ValueError, match=f"'{re.escape(str(path))}' {re.escape(message)}"):
        Explorer.from_file(path)


def test_other_files_are_refused_by_their_names(tmp_path):
    speeds = write(benchmark(), tmp_path / "speed.json")
    with pytest.raises(ValueError, match=r"speed\.json' is a benchmark. Give a result of `deepcache ablate`"):
        Explorer.from_file(speeds)
    with pytest.raises(FileNotFoundError, match=r"there is no result file '.*none\.json'"):
        Explorer.from_file(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        Explorer.from_file(tmp_path)
    (tmp_path / "text.json").write_bytes(b"\xff\xfe no text")
    with pytest.raises(ValueError, match=r"text\.json': it is not UTF-8 text"):
        Explorer.from_file(tmp_path / "text.json")


def test_a_group_without_measurements_is_omitted(changed):
    path = changed(lambda result: result["groups"][1].update(cells=[], reference=None), images=False)
    assert [group.title for group in Explorer.from_file(path).groups] == [TITLE]


def test_settings_without_psnr_are_omitted(changed):
    path = changed(lambda result: cell_of(result, "I=3 B=0").update(psnr=None), images=False)
    group = Explorer.from_file(path).groups[0]
    assert (3, 0) not in group.heat_maps["re-use, uniform"].cells
    assert (3, 0) in group.heat_maps["linear forecast, uniform"].cells


def test_unknown_groups_and_settings_are_named(explorer):
    group = explorer.groups[0]
    with pytest.raises(ValueError, match=f"there is no group 'DDIM'. Choose one of: {TITLE}; model, 25 steps"):
        explorer.group("DDIM")
    with pytest.raises(ValueError, match=f"'I=9 B=9' was not measured with {TITLE}"):
        explorer.choose(group, "I=9 B=9")
    with pytest.raises(ValueError, match="'12 steps' does not use DeepCache"):
        explorer.choose(group, "12 steps")


def test_the_bundled_ablation_can_be_explored():
    explorer = Explorer.from_file(SHIPPED_ABLATION)
    assert len(explorer.groups) == 4
    for group in explorer.groups:
        assert {len(each.cells) for each in group.heat_maps.values()} == {12, 2}
        assert all(each.html("").count("<button") == len(each.cells) for each in group.heat_maps.values())
    group = explorer.groups[0]
    for cell in group.deepcache:
        choice = explorer.choose(group, cell["label"])
        kept = explorer.source.result["settings"]["prompts"][:4] if cell["label"] == "I=3 B=0" else []
        assert [sample.prompt for sample in choice.samples] == kept
        assert ("no images are kept" in choice.note) is not bool(kept)
        assert abs(group.measured.fewer_steps_like(cell)["mac_share"] - cell["mac_share"]) < 0.06
