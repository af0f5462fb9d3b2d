import json
import re
from itertools import product

import pytest
from PIL import Image, ImageChops

from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
from DeepCache.app.grid_table import SHADES, grid_html
from DeepCache.app.measured_group import Grid, Kind
from DeepCache.app.rendering import asset
from DeepCache.bench.variants import parse_variant
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.app.contrast import contrast, luminance
from tests.report.made_up_results import ablation, benchmark, metric, write
from tests.report.reading import parse

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
    """Writes the ablation with something of it changed."""

    def changed(change, draw=True):
        copy = json.loads(json.dumps(result))
        change(copy)
        path = tmp_path / "result.json"
        return write(copy, path) if draw else path.write_text(json.dumps(copy)) and path

    return changed


def cell_of(result, label, group=0):
    return next(cell for cell in result["groups"][group]["cells"] if cell["label"] == label)


def identical(one, other):
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def test_groups_have_titles_schedulers_and_steps(explorer):
    assert [(group.title, group.scheduler, group.steps, group.images) for group in explorer.groups] == [
        (TITLE, "DDIMScheduler", 50, 6),
        ("model, 25 steps", None, 25, 6),
    ]
    assert explorer.model == explorer.groups[0].model == "shapes"
    assert explorer.group("model, 25 steps") is explorer.groups[1]


def test_a_group_has_a_grid_for_each_kind_of_settings_in_the_order_of_the_file(explorer):
    grids = explorer.groups[0].grids
    assert [grid.kind.title for grid in grids] == [
        "re-use, uniform",
        "linear forecast, uniform",
        "linear forecast, uniform, guidance reuse",
    ]
    assert [(grid.intervals, grid.branches) for grid in grids] == [
        ([2, 3, 5], [0, 1]),
        ([2, 3, 5], [0, 1]),
        ([3, 5], [0]),
    ]
    assert explorer.groups[0].grid("linear forecast, uniform") is grids[1]
    assert Kind("quadratic", "non-uniform", False).title == "quadratic forecast, non-uniform"


def test_a_cell_of_a_grid_has_its_numbers(explorer, result):
    for grid, more in zip(explorer.groups[0].grids[:2], ("", " linear"), strict=True):
        for interval, branch in product((2, 3, 5), (0, 1)):
            way = grid.way(interval, branch)
            cell = cell_of(result, f"I={interval} B={branch}{more}")
            assert way.config == parse_variant(cell["label"]).config
            assert (way.label, way.pattern, way.front) == (cell["label"], cell["pattern"], cell["front"])
            assert (way.mac_share, way.speed_up) == (cell["mac_share"], 1 / cell["mac_share"])
            assert (way.psnr, list(way.psnr_interval)) == (cell["psnr"]["mean"], cell["psnr"]["confidence"])
            assert way.seconds == cell["seconds"] / 6


def test_the_colours_of_all_grids_of_a_group_have_one_scale(explorer, result):
    values = [cell["psnr"]["mean"] for cell in result["groups"][0]["cells"] if cell["method"] == "DeepCache"]
    assert {grid.psnr_range for grid in explorer.groups[0].grids} == {(min(values), max(values))}


def test_a_plan_and_a_schedule_are_in_no_grid_but_can_be_chosen(changed):
    plan = Plan(StepSchedule((Step(True), Step(False))), {}, {})

    def add_a_plan(result):
        cell = result["groups"][0]["cells"][0]
        added = [
            {**cell, "label": "plan mine", "config": {"plan": plan.to_dict()}},
            {**cell, "label": "plan other", "config": {"schedule": {"kind": "explicit", "at": [0, 2], "branch": 0}}},
        ]
        result["groups"][0]["cells"] += added

    explorer = Explorer.from_file(changed(add_a_plan))
    group = explorer.groups[0]
    assert group.named("plan mine").config.plan == plan
    assert explorer.choose(group, "plan other").way.config.schedule.at == (0, 2)
    in_grids = [way.label for grid in group.grids for way in grid.cells.values()]
    assert sorted(in_grids) == sorted([*GRID, *REUSED])


def test_a_choice_has_the_pictures_of_the_three_ways_cut_from_their_strips(explorer, result, path):
    group = explorer.groups[0]
    choice = explorer.choose(group, "I=3 B=1")
    assert choice.note == ""
    assert choice.fewer_steps.label == "21 steps"
    names = [cell_of(result, "I=3 B=1"), result["groups"][0]["reference"], cell_of(result, "21 steps")]
    strips = [Image.open(path.parent / one["samples"]).convert("RGB") for one in names]
    # Three prompts and two seeds: the fourth picture is the first prompt's second one.
    prompts = ["a red circle", "a blue square", "a green star", "a red circle"]
    assert [sample.prompt for sample in choice.samples] == prompts
    for number, sample in enumerate(choice.samples):
        box = (64 * number, 0, 64 * (number + 1), 64)
        for picture, strip in zip((sample.cached, sample.original, sample.fewer_steps), strips, strict=True):
            assert identical(picture, strip.crop(box))
        assert sample.psnr == names[0]["psnr"]["values"][number]
        assert sample.fewer_steps_psnr == names[2]["psnr"]["values"][number]
    assert not identical(choice.samples[0].cached, choice.samples[0].original)


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
        ["Multiply-accumulates of the U-Net", "42.2 %", "42.0 %", "100 %"],
        ["Speed-up of the U-Net by them", "2.37×", "2.38×", "1.00×"],
        ["PSNR, dB, mean ± 95 % confidence interval", "50.00 ± 1.50", "45.00 ± 1.00", "–"],
        ["SSIM, mean ± 95 % confidence interval", "0.9900 ± 0.0100", "–", "–"],
        ["Seconds per image, one run", "1.50 s", "2.00 s", "4.00 s"],
        ["Steps", "2 full, 3 shallow", "2 full", "50 full"],
        ["Pareto front", "on it", "no: I=3 B=0 is 5.00 dB nearer at the same cost or less", "–"],
    ]


def test_without_fewer_steps_a_choice_has_two_columns(changed):
    def leave_out_fewer_steps(result):
        cells = result["groups"][0]["cells"]
        result["groups"][0]["cells"] = [cell for cell in cells if cell["method"] == "DeepCache"]

    explorer = Explorer.from_file(changed(leave_out_fewer_steps))
    choice = explorer.choose(explorer.groups[0], "I=3 B=0")
    assert choice.fewer_steps is None
    assert choice.columns == ["I=3 B=0", "no caching"]
    assert {len(row) for row in choice.rows} == {3}
    assert [sample.fewer_steps for sample in choice.samples] == [None] * 4


def test_pictures_that_were_not_kept_or_are_gone_are_told_and_the_figures_are_there(explorer, changed):
    def keep_few(result):
        cell_of(result, "I=3 B=0")["samples"] = None
        cell_of(result, "I=5 B=0")["samples"] = "samples/gone.png"
        cell_of(result, "12 steps")["samples"] = None

    path = changed(keep_few, draw=False)
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
    assert found["I=3 B=0"].note == "No pictures: those of I=3 B=0 were not kept."
    assert found["I=5 B=0"].note == "No pictures: the file 'samples/gone.png' does not exist."
    assert found[REUSED[1]].note == "No pictures of fewer steps: those of 12 steps were not kept."
    assert found[REUSED[1]].samples[0].fewer_steps is None
    assert all(choice.rows for choice in found.values())


def test_a_damaged_picture_is_told(changed):
    path = changed(lambda result: None)
    explorer = Explorer.from_file(path)
    (path.parent / "samples/0/I=3_B=0.png").write_text("no picture")
    choice = explorer.choose(explorer.groups[0], "I=3 B=0")
    assert choice.note == "No pictures: 'samples/0/I=3_B=0.png' is damaged or not a PNG."


def test_a_file_that_is_reached_by_a_link_has_its_pictures(path, tmp_path):
    (tmp_path / "link.json").symlink_to(path)
    explorer = Explorer.from_file(tmp_path / "link.json")
    assert len(explorer.choose(explorer.groups[0], "I=3 B=0").samples) == 4


@pytest.mark.parametrize("name", ["../secret.png", "samples/../../secret.png", "/etc/secret.png", "way-out/secret.png"])
def test_a_picture_outside_the_folder_is_refused(changed, tmp_path, name):
    (tmp_path / "way-out").symlink_to(tmp_path.parent)

    def lead_outside(result):
        result["groups"][1]["cells"][3]["samples"] = name

    path = changed(lead_outside, draw=False)
    with pytest.raises(ValueError, match=f"^'{re.escape(str(path))}' is damaged: the path '{name}' leads out of its"):
        Explorer.from_file(path)


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
            "holds nothing of DeepCache yet: let `deepcache ablate` finish it",
        ),
        (
            lambda result: result["settings"].update(guidances=[float("nan")]),
            "holds NaN, a number that JSON does not have",
        ),
        (lambda result: result.update(format="DeepCache ablation 0"), "is not a result of `deepcache benchmark` or"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(changed, change, message):
    path = changed(change, draw=False)
    with pytest.raises(ValueError, match=f"'{re.escape(str(path))}' {re.escape(message)}"):
        Explorer.from_file(path)


def test_other_files_are_refused_by_their_names(tmp_path):
    speeds = write(benchmark(), tmp_path / "speed.json")
    with pytest.raises(ValueError, match=r"speed\.json' is a benchmark; give a result of `deepcache ablate`"):
        Explorer.from_file(speeds)
    with pytest.raises(FileNotFoundError, match=r"there is no result file '.*none\.json'"):
        Explorer.from_file(tmp_path / "none.json")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        Explorer.from_file(tmp_path)
    (tmp_path / "text.json").write_bytes(b"\xff\xfe no text")
    with pytest.raises(ValueError, match=r"text\.json': it is not UTF-8 text"):
        Explorer.from_file(tmp_path / "text.json")


def test_a_group_that_is_not_begun_is_left_out(changed):
    path = changed(lambda result: result["groups"][1].update(cells=[], reference=None), draw=False)
    assert [group.title for group in Explorer.from_file(path).groups] == [TITLE]


def test_settings_whose_images_were_not_compared_are_left_out(changed):
    path = changed(lambda result: cell_of(result, "I=3 B=0").update(psnr=None), draw=False)
    group = Explorer.from_file(path).groups[0]
    assert (3, 0) not in group.grids[0].cells
    assert (3, 0) in group.grids[1].cells


def test_what_is_asked_for_and_not_there_is_named(explorer):
    group = explorer.groups[0]
    with pytest.raises(ValueError, match=f"there is no 'DDIM'; there are {TITLE}; model, 25 steps"):
        explorer.group("DDIM")
    with pytest.raises(ValueError, match="there is no 'cubic'; there are re-use, uniform; linear forecast, uniform; "):
        group.grid("cubic")
    with pytest.raises(ValueError, match=f"there is no 'I=9 B=9' with {TITLE}"):
        explorer.choose(group, "I=9 B=9")
    with pytest.raises(ValueError, match="'12 steps' is drawn without DeepCache"):
        explorer.choose(group, "12 steps")
    with pytest.raises(ValueError, match="re-use, uniform: interval 4 with branch 0 was not measured"):
        group.grids[0].way(4, 0)


def test_the_table_of_a_grid_says_what_each_cell_is(explorer):
    grid = explorer.groups[0].grids[1]
    (table,) = parse(grid_html(grid, chosen="I=5 B=1 linear")).all("table")
    (caption,) = table.all("caption")
    assert caption.text.endswith("share of the U-Net's multiply-accumulates: linear forecast, uniform")
    heads = [(head.attributes["scope"], head.text) for head in table.all("th")]
    assert heads == [
        *(("col", f"Interval {interval}") for interval in (2, 3, 5)),
        *(("row", f"Branch {branch}") for branch in (0, 1)),
    ]
    buttons = table.all("button")
    assert len(buttons) == 6
    for button in buttons:
        about = button.attributes
        way = grid.way(int(about["data-interval"]), int(about["data-branch"]))
        assert about["type"] == "button"
        assert about["aria-pressed"] == ("true" if way.label == "I=5 B=1 linear" else "false")
        words = f"Interval {way.config.cache_interval}, branch {way.config.cache_branch_id}: "
        front = " Pareto front" if way.front else ""
        assert button.text == f"{words}{way.psnr:.1f} dB {100 * way.mac_share:.1f} %{front}"
    assert {button.text.endswith("Pareto front") for button in buttons} == {True, False}


def test_a_higher_psnr_has_a_lighter_shade(explorer):
    grids = explorer.groups[0].grids
    found = []
    for grid in grids:
        for button in parse(grid_html(grid)).all("button"):
            way = grid.way(int(button.attributes["data-interval"]), int(button.attributes["data-branch"]))
            found.append((way.psnr, int(button.attributes["class"].removeprefix("shade-"))))
    shades = [shade for _, shade in sorted(found)]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (0, SHADES - 1)


def test_a_cell_that_was_not_measured_is_no_button(explorer):
    whole = explorer.groups[0].grids[0]
    grid = Grid(whole.kind, {place: way for place, way in whole.cells.items() if place != (3, 1)}, whole.psnr_range)
    page = parse(grid_html(grid))
    assert len(page.all("button")) == 5
    assert [cell.text for cell in page.all("td")].count("not measured") == 1


def test_identical_images_are_said_to_be_and_leave_the_scale_as_it_is(changed):
    def one_is_identical(result):
        cell_of(result, "I=2 B=1")["psnr"] = metric([120.0] * 6)

    group = Explorer.from_file(changed(one_is_identical, draw=False)).groups[0]
    assert group.grids[0].psnr_range[1] < 60
    buttons = parse(grid_html(group.grids[0])).all("button")
    (same,) = [button for button in buttons if "identical" in button.text]
    assert "120" not in same.text
    assert same.attributes["class"] == f"shade-{SHADES - 1}"


def test_settings_that_are_all_as_near_have_one_shade(explorer):
    grid = explorer.groups[0].grids[0]
    way = grid.way(3, 0)
    same = Grid(grid.kind, {(3, 0): way}, (way.psnr, way.psnr))
    (button,) = parse(grid_html(same)).all("button")
    assert button.attributes["class"] == "shade-0"


def test_every_shade_can_be_read_and_is_lighter_than_the_one_before():
    rule = r"\.shade-(\d) \{ background: (#\w{6}); color: (#\w{6}); \}"
    shades = re.findall(rule, asset("explorer.css"))
    assert [int(number) for number, _, _ in shades] == list(range(SHADES))
    assert all(contrast(background, text) >= 4.5 for _, background, text in shades)
    found = [luminance(background) for _, background, _ in shades]
    assert all(darker < lighter for darker, lighter in zip(found, found[1:], strict=False))


def test_the_shipped_ablation_can_be_explored_whole():
    explorer = Explorer.from_file(SHIPPED_ABLATION)
    assert len(explorer.groups) == 4
    for group in explorer.groups:
        assert {len(grid.cells) for grid in group.grids} == {12, 2}
        assert all(grid_html(grid).count("<button") == len(grid.cells) for grid in group.grids)
    group = explorer.groups[0]
    for way in group.deepcache:
        choice = explorer.choose(group, way.label)
        assert choice.note == ""
        assert [sample.prompt for sample in choice.samples] == explorer.source.result["settings"]["prompts"][:4]
        assert abs(choice.fewer_steps.mac_share - way.mac_share) < 0.06
