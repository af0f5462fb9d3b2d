"""`run_ablation`: the images, the metrics and the recorded settings."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from DeepCache import DeepCacheConfig
from DeepCache.bench import ablation, ablation_group
from DeepCache.bench.ablation import AblationSettings, grid, run_ablation
from DeepCache.bench.ablation_group import fewer_steps
from DeepCache.bench.benchmark_case import DEEPCACHE, FEWER_STEPS
from DeepCache.bench.result_file import read_result
from DeepCache.bench.variants import Variant, parse_variant
from DeepCache.engine import stats
from DeepCache.engine.attach import apply_deepcache, remove_deepcache
from DeepCache.judge import Verdict
from DeepCache.metrics import clip_score
from DeepCache.models import set_scheduler
from DeepCache.schedule import FORECASTS, Step
from tests.bench.small_models import plan_for, unconditional_pipeline
from tests.bench.tiny_clip import save_tiny_clip
from tests.tune.small_pipeline import PROMPTS, small_pipeline

# Some schedulers of diffusers hand a tensor to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TWO = parse_variant("I=2")
GUIDANCE = 3.0


@pytest.fixture(autouse=True)
def _small(model, monkeypatch):
    model(small_pipeline)
    for name in ("why_not_lpips", "why_not_clip"):
        monkeypatch.setattr(ablation, name, lambda *_: "it is not here")


def settings(*variants, **changed):
    """Little to do."""
    values = {"model": "some model", "steps": (4,), "guidances": (GUIDANCE,), "batch": 2, "samples": 0}
    return AblationSettings(PROMPTS[:2], variants or (TWO,), **values | changed)


def run(tmp_path, chosen, **more):
    output = tmp_path / "ablation.json"
    result = run_ablation(chosen, output, device="cpu", **more)
    assert read_result(output) == result
    assert not (tmp_path / "ablation-unfinished").exists()
    return result


def generated(steps=4, config=None, prompts=PROMPTS[:2], seed=0, scheduler=None, batch=2, size=None, guidance=GUIDANCE):
    """The images of a pipeline that knows nothing of ablations, and what DeepCache says of the last batch."""
    pipe = small_pipeline()
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    engine = apply_deepcache(pipe, config) if config is not None else None
    images = []
    for first in range(0, len(prompts), batch):
        some = list(prompts[first : first + batch])
        images.append(
            pipe(
                some,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed + first + place) for place in range(len(some))],
                output_type="pt",
                **{} if size is None else dict(zip(("width", "height"), size, strict=True)),
            ).images
        )
    return torch.cat(images), engine and engine.stats


def expected(images, reference):
    """PSNR, which counts as 120 at most, and SSIM of each image by itself."""
    pairs = [(one[None], other[None]) for one, other in zip(images, reference, strict=True)]
    fidelity_of_each = [peak_signal_noise_ratio(*pair, data_range=1.0).item() for pair in pairs]
    likeness = [structural_similarity_index_measure(*pair, data_range=1.0).item() for pair in pairs]
    return [min(120, value) for value in fidelity_of_each], likeness


def check(cell, images, reference):
    fidelity_of_each, likeness = expected(images, reference)
    assert cell["psnr"]["values"] == pytest.approx(fidelity_of_each, abs=1e-4)
    assert cell["ssim"]["values"] == pytest.approx(likeness, abs=1e-4)
    for metric in ("psnr", "ssim"):
        values = cell[metric]["values"]
        assert cell[metric]["mean"] == fmean(values)
        low, high = cell[metric]["confidence"]
        assert low + high == pytest.approx(2 * cell[metric]["mean"])
        spread = math.sqrt(sum((value - fmean(values)) ** 2 for value in values) / (len(values) - 1))
        assert high - low == pytest.approx(2 * 1.96 * spread / math.sqrt(len(values)))


def cells_of(result):
    return {cell["label"]: cell for group in result["groups"] for cell in group["cells"]}


def test_every_setting_is_compared_with_the_same_images_without_caching(tmp_path):
    variants = [parse_variant(name) for name in ("I=2", "I=3 B=1 linear", "I=2 guidance-reuse", "I=3 non-uniform")]
    variants += [parse_variant(name) for name in ("I=3 response skipped", "I=3 limited adaptive threshold=9")]
    result = run(tmp_path, settings(*variants))
    reference, _ = generated()
    (group,) = result["groups"]
    assert [cell["label"] for cell in group["cells"][:6]] == [variant.name for variant in variants]
    assert [cell["pattern"] for cell in group["cells"][4:6]] == ["F--F", "FFFF"]
    for cell, variant in zip(group["cells"], variants, strict=False):
        images, stats = generated(config=variant.config)
        check(cell, images, reference)
        assert (cell["pattern"], cell["mac_share"]) == (stats.pattern, stats.mac_share)
        assert (cell["method"], cell["steps"]) == (DEEPCACHE, 4)
        assert DeepCacheConfig(**cell["config"]) == variant.config
    fewer = group["cells"][6:]
    counts = sorted({round(4 * cell["mac_share"]) for cell in group["cells"][:6]} - {4}, reverse=True)
    assert [cell["steps"] for cell in fewer] == counts
    for cell in fewer:
        images, _ = generated(steps=cell["steps"])
        check(cell, images, reference)
        assert (cell["method"], cell["config"], cell["label"]) == (FEWER_STEPS, None, f"{cell['steps']} steps")
        assert (cell["pattern"], cell["mac_share"]) == ("F" * cell["steps"], cell["steps"] / 4)


def test_batches_seeds_and_prompts_give_the_images_of_single_runs(tmp_path):
    chosen = replace(settings(), prompts=PROMPTS, seeds=(5, 40))
    cell = cells_of(run(tmp_path, chosen))["I=2 B=0"]
    images, reference = (
        torch.cat([generated(config=config, prompts=PROMPTS, seed=seed)[0] for seed in (5, 40)])
        for config in (TWO.config, None)
    )
    check(cell, images, reference)
    single = []
    for seed in (5, 40):
        (tmp_path / "ablation.json").unlink()
        single += cells_of(run(tmp_path, replace(chosen, seeds=(seed,))))["I=2 B=0"]["psnr"]["values"]
    assert cell["psnr"]["values"] == single
    assert len(set(single)) == 6


def test_identical_images_count_as_120_db(tmp_path):
    cell = cells_of(run(tmp_path, settings(parse_variant("I=1"))))["I=1 B=0"]
    assert cell["psnr"] == {"mean": 120, "confidence": [120, 120], "p5": 120, "values": [120, 120]}
    assert cell["ssim"]["values"] == [1, 1]
    assert (cell["mac_share"], cell["pattern"]) == (1, "FFFF")
    # Fewer steps at the same cost would be all of them.
    assert len(cells_of(read_result(tmp_path / "ablation.json"))) == 1


def test_one_image_has_an_interval_of_no_width(tmp_path):
    cell = cells_of(run(tmp_path, replace(settings(), prompts=PROMPTS[:1])))["I=2 B=0"]
    assert cell["psnr"]["confidence"] == [cell["psnr"]["mean"]] * 2


def test_a_size_can_be_rectangular(tmp_path):
    result = run(tmp_path, settings(size=(24, 16), samples=2))
    assert (result["settings"]["width"], result["settings"]["height"]) == (24, 16)
    (images, _), (reference, _) = (generated(config=config, size=(24, 16)) for config in (TWO.config, None))
    assert images.shape == (2, 3, 16, 24)
    check(cells_of(result)["I=2 B=0"], images, reference)
    with Image.open(tmp_path / cells_of(result)["I=2 B=0"]["samples"]) as strip:
        assert strip.size == (48, 16)


@pytest.mark.parametrize("kept", [2, 9])
def test_the_first_images_are_saved_side_by_side(tmp_path, kept):
    chosen = replace(settings(parse_variant("I=2 linear")), prompts=PROMPTS, samples=kept)
    result = run(tmp_path, chosen)
    (group,) = result["groups"]
    strips = {"original": (group["reference"]["samples"], generated(prompts=PROMPTS)[0])}
    for label, cell in cells_of(result).items():
        config = chosen.variants[0].config if cell["method"] == DEEPCACHE else None
        strips[label] = (cell["samples"], generated(cell["steps"], config, PROMPTS)[0])
    assert len(strips) >= 3
    folder = tmp_path / "ablation-samples" / "model-4-steps-guidance-3"
    names = {label: f"{label.lower().replace(' ', '-').replace('=', '-')}.png" for label in strips}
    assert {path.name for path in folder.iterdir()} == set(names.values())
    for label, (path, images) in strips.items():
        assert path == f"ablation-samples/model-4-steps-guidance-3/{names[label]}"
        with Image.open(tmp_path / path) as strip:
            assert strip.size == (16 * min(kept, 3), 16)
            assert strip.mode == "RGB"
            found = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).reshape(16, -1, 3)
        for place, image in enumerate(images[:kept]):
            pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
            assert torch.equal(found[:, 16 * place : 16 * (place + 1)], pixels)


def test_without_samples_no_image_is_saved(tmp_path):
    result = run(tmp_path, settings(samples=0))
    assert result["groups"][0]["reference"]["samples"] is None
    assert {cell["samples"] for cell in cells_of(result).values()} == {None}
    assert [path.name for path in tmp_path.iterdir()] == ["ablation.json"]


def test_names_that_differ_after_a_dot_have_separate_folders(tmp_path):
    for name in ("sd.15", "sd.21.json"):
        run_ablation(settings(samples=1), tmp_path / name, device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sd.15",
        "sd.15-samples",
        "sd.21-samples",
        "sd.21.json",
    ]


def test_samples_of_different_settings_have_different_files(tmp_path):
    plan = plan_for(small_pipeline(), (Step(True), Step(False), Step(True), Step(False)))
    names = ("plan 圆", "plan 星", "plan a_b", "plan a-b")
    result = run(tmp_path, settings(*(Variant(name, DeepCacheConfig(plan=plan)) for name in names), samples=1))
    paths = [cells_of(result)[name]["samples"] for name in names]
    assert len(set(paths)) == 4


def test_unavailable_metrics_are_listed_with_the_reason(tmp_path):
    result = run(tmp_path, settings())
    assert result["settings"]["left_out"] == {
        "lpips": "it is not here",
        "clip": "it is not here",
        "judge": "only shapes has one",
    }
    assert result["groups"][0]["reference"]["clip"] is None
    assert result["groups"][0]["reference"]["right"] is None
    found = {(cell["lpips"], cell["clip"], cell["right"]) for cell in cells_of(result).values()}
    assert found == {(None, None, None)}


def test_available_metrics_are_measured(tmp_path, monkeypatch):
    clip = str(save_tiny_clip(tmp_path / "clip"))
    asked = []
    monkeypatch.setattr(ablation, "why_not_clip", lambda name: asked.append(name) or "")
    monkeypatch.setattr(ablation, "why_not_lpips", lambda: "")
    # The images and those to compare with, in this order: a distance is another the other way round.
    monkeypatch.setattr(ablation_group, "lpips", lambda one, other: (one - 0.5 * other).mean(dim=(1, 2, 3)))
    chosen = settings(clip=clip, seeds=(0, 7))
    result = run(tmp_path, chosen)
    assert asked == [clip]
    assert list(result["settings"]["left_out"]) == ["judge"]
    reference, images = (
        torch.cat([generated(config=config, seed=seed)[0] for seed in (0, 7)]) for config in (None, TWO.config)
    )
    prompts = [*PROMPTS[:2], *PROMPTS[:2]]
    cell, (group,) = cells_of(result)["I=2 B=0"], result["groups"]
    assert cell["clip"]["values"] == pytest.approx(clip_score(images, prompts, clip).tolist(), abs=1e-3)
    assert group["reference"]["clip"]["values"] == pytest.approx(
        clip_score(reference, prompts, clip).tolist(), abs=1e-3
    )
    assert len(set(cell["clip"]["values"])) > 1
    assert cell["lpips"]["values"] == pytest.approx((images - 0.5 * reference).mean(dim=(1, 2, 3)).tolist(), abs=1e-4)


def test_the_front_includes_fewer_steps(tmp_path):
    variants = grid((2, 3), (0, 1), forecasts=("none", "linear"))
    cells = list(cells_of(run(tmp_path, settings(*variants, steps=(6,)))).values())
    assert {cell["method"] for cell in cells} == {DEEPCACHE, FEWER_STEPS}
    for cell in cells:
        better = [
            other
            for other in cells
            if other["mac_share"] < cell["mac_share"] + 1e-9 and other["psnr"]["mean"] > cell["psnr"]["mean"]
        ]
        assert cell["front"] is not bool(better)
        if better:
            closest = max(better, key=lambda other: other["psnr"]["mean"])
            assert cell["dominated_by"]["label"] == closest["label"]
            gain = closest["psnr"]["mean"] - cell["psnr"]["mean"]
            assert cell["dominated_by"]["psnr_gain"] == pytest.approx(gain)
    assert {cell["front"] for cell in cells} == {True, False}


def test_schedulers_and_steps_make_separate_groups(tmp_path):
    result = run(tmp_path, settings(schedulers=("ddim", "euler", "model"), steps=(3, 2)))
    found = [(group["scheduler"], group["scheduler_class"], group["steps"]) for group in result["groups"]]
    assert found == [
        (name, cls, steps)
        for name, cls in (
            ("ddim", "DDIMScheduler"),
            ("euler", "EulerDiscreteScheduler"),
            ("model", "DDIMScheduler"),
        )
        for steps in (3, 2)
    ]
    for group in result["groups"]:
        scheduler = None if group["scheduler"] == "model" else group["scheduler"]
        (images, _), (reference, _) = (
            generated(group["steps"], config, scheduler=scheduler) for config in (TWO.config, None)
        )
        check(group["cells"][0], images, reference)


def test_guidance_scales_make_separate_groups(tmp_path):
    result = run(tmp_path, settings(guidances=(1.5, 7.0), steps=(4, 3), samples=1))
    assert result["settings"]["guidances"] == [1.5, 7.0]
    found = [(group["guidance"], group["steps"]) for group in result["groups"]]
    assert found == [(1.5, 4), (1.5, 3), (7.0, 4), (7.0, 3)]
    for group in result["groups"]:
        steps, guidance = group["steps"], group["guidance"]
        (images, _), (reference, _) = (generated(steps, config, guidance=guidance) for config in (TWO.config, None))
        cached, *fewer = group["cells"]
        check(cached, images, reference)
        assert fewer
        for cell in fewer:
            check(cell, generated(cell["steps"], guidance=guidance)[0], reference)
        # A front of its own.
        assert any(cell["front"] for cell in group["cells"])
    folders = {path.name for path in (tmp_path / "ablation-samples").iterdir()}
    assert folders == {f"model-{steps}-steps-guidance-{scale}" for steps in (4, 3) for scale in ("1.5", "7")}


def test_one_guidance_scale_has_a_short_form():
    assert AblationSettings(PROMPTS, (TWO,), guidance=4.0) == AblationSettings(PROMPTS, (TWO,), guidances=(4.0,))


def test_the_recommended_guidance_scale_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "recommended_guidance", lambda model, pipe: 5.0)
    result = run(tmp_path, settings(guidances=()))
    assert (result["settings"]["guidances"], result["groups"][0]["guidance"]) == ([5.0], 5.0)
    (images, _), (reference, _) = (generated(config=config, guidance=5.0) for config in (TWO.config, None))
    check(cells_of(result)["I=2 B=0"], images, reference)


def test_the_gain_over_reuse_is_paired_by_image(tmp_path):
    names = ("I=2 linear", "I=2", "I=2 B=1 linear", "I=2 guidance-reuse")
    cells = cells_of(run(tmp_path, settings(*map(parse_variant, names))))
    reuse = cells["I=2 B=0"]
    for name in ("I=2 B=0 linear", "I=2 B=0 guidance-reuse"):
        found = cells[name]["over_reuse"]
        assert found["label"] == "I=2 B=0"
        for metric in ("psnr", "ssim"):
            pairs = zip(cells[name][metric]["values"], reuse[metric]["values"], strict=True)
            one, other = (mine - theirs for mine, theirs in pairs)
            assert found[metric]["mean"] == pytest.approx((one + other) / 2)
            low, high = found[metric]["confidence"]
            # Of two values the standard error is half their distance.
            assert high - low == pytest.approx(1.96 * abs(one - other))
    assert {label for label, cell in cells.items() if cell["over_reuse"] is None} == {
        "I=2 B=0",
        "I=2 B=1 linear",
        *(label for label, cell in cells.items() if cell["method"] == FEWER_STEPS),
    }


class _BrightIsRight:
    """Calls each of two objects right in whose half of the image red outweighs green."""

    def check(self, prompts):
        if "a dull thing" in prompts:
            raise ValueError("'a dull thing' is not a prompt of the model")

    def verdicts(self, images, prompts):
        assert list(prompts) == [*PROMPTS[:2], *PROMPTS[:2]]
        halves = [(image[0] > image[1]).float().chunk(2, dim=-1) for image in images]
        right = [sum(half.mean().item() > 0.5 for half in pair) for pair in halves]
        return [Verdict(2, count, count, count, count, 2) for count in right]


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.setattr(ablation, "JUDGED", ("some model",))
    monkeypatch.setattr(ablation, "SIDE", 16)
    monkeypatch.setattr(ablation, "load_judge", lambda model: _BrightIsRight())


def test_right_objects_are_counted_with_a_judge(tmp_path, judged):
    result = run(tmp_path, settings(seeds=(0, 7)))
    assert "judge" not in result["settings"]["left_out"]
    prompts = [*PROMPTS[:2], *PROMPTS[:2]]
    images, reference = (
        torch.cat([generated(config=config, seed=seed)[0] for seed in (0, 7)]) for config in (TWO.config, None)
    )
    for found, shown in ((cells_of(result)["I=2 B=0"], images), (result["groups"][0]["reference"], reference)):
        verdicts = _BrightIsRight().verdicts(shown, prompts)
        assert found["right"]["values"] == [verdict.objects_right / 2 for verdict in verdicts]
        assert found["right"]["mean"] == fmean(found["right"]["values"])
    assert all(cell["right"] is not None for cell in cells_of(result).values())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"judge": False}, "it was turned off"),
        ({"size": (24, 16)}, "it reads images of 16x16 pixels"),
        ({"prompts": ("a dull thing",)}, "'a dull thing' is not a prompt of the model"),
        ({"model": "another"}, "only some model has one"),
    ],
)
def test_without_a_judge_the_reason_is_recorded(tmp_path, judged, changed, reason):
    result = run(tmp_path, replace(settings(), **changed))
    assert result["settings"]["left_out"]["judge"] == reason
    assert cells_of(result)["I=2 B=0"]["right"] is None


@pytest.mark.parametrize("scheduler", ["heun", "pndm"])
def test_fewer_steps_are_counted_in_unet_calls_if_a_step_has_several(tmp_path, scheduler):
    result = run(tmp_path, settings(schedulers=(scheduler,), steps=(6,)))
    (group,) = result["groups"]
    cached, *fewer = group["cells"]
    calls = {"heun": lambda steps: 2 * steps - 1, "pndm": lambda steps: steps + 1}[scheduler]
    assert len(cached["pattern"]) == calls(6)
    assert fewer
    for cell in fewer:
        assert cell["pattern"] == "F" * calls(cell["steps"])
        assert cell["mac_share"] == calls(cell["steps"]) / calls(6)


@pytest.mark.parametrize(
    ("shares", "steps", "expected"),
    [
        ([0.3, 0.52, 0.29, 1.0], 10, [5, 3]),
        ([0.001], 10, [1]),
        ([1.0, 0.999], 10, []),
        ([eighth / 8 for eighth in range(8)], 80, [70, 60, 50, 40, 30, 20, 10, 1]),
    ],
)
def test_few_costs_have_one_number_of_fewer_steps_each(shares, steps, expected):
    assert fewer_steps(shares, steps) == expected


@pytest.mark.parametrize("many", range(9, 40))
def test_many_costs_share_eight_evenly_spread_numbers_of_fewer_steps(many):
    counts = fewer_steps([place / 50 for place in range(1, many + 1)], 50)
    assert len(counts) == len(set(counts)) == 8
    assert counts == sorted(counts, reverse=True)
    assert set(counts) <= set(range(1, many + 1))
    assert (counts[0], counts[-1]) == (many, 1)
    gaps = [before - after for before, after in zip(counts, counts[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1


@pytest.fixture
def plan():
    """For four steps of DDIM."""
    pipe = small_pipeline()
    set_scheduler(pipe, "ddim")
    return plan_for(pipe, (Step(True), Step(False), Step(True), Step(False, 1)), steps=4)


def test_a_plan_runs_with_its_scheduler_and_steps_only(tmp_path, plan):
    tuned = Variant("plan a", DeepCacheConfig(plan=plan))
    result = run(tmp_path, settings(TWO, tuned, schedulers=("ddim", "euler"), steps=(4, 6)))
    labels = {
        (group["scheduler"], group["steps"]): [cell["label"] for cell in group["cells"] if cell["config"]]
        for group in result["groups"]
    }
    assert labels == {
        ("ddim", 4): ["I=2 B=0", "plan a"],
        ("ddim", 6): ["I=2 B=0"],
        ("euler", 4): ["I=2 B=0"],
        ("euler", 6): ["I=2 B=0"],
    }
    assert {(group["scheduler"], group["steps"]): group["labels"] for group in result["groups"]} == labels
    assert result["settings"]["labels"] == ["I=2 B=0", "plan a"]
    assert cells_of(result)["plan a"]["pattern"] == "F0F1"


def test_a_plan_runs_at_its_guidance_scales_only(tmp_path, plan):
    tuned = Variant("plan a", DeepCacheConfig(plan=replace(plan, guidance=(2.0, 4.0))))
    result = run(tmp_path, settings(TWO, tuned, schedulers=("ddim",), guidances=(3.0, 8.0)))
    labels = [[cell["label"] for cell in group["cells"] if cell["config"]] for group in result["groups"]]
    assert labels == [["I=2 B=0", "plan a"], ["I=2 B=0"]]
    assert [group["labels"] for group in result["groups"]] == labels


def test_a_group_without_settings_is_not_generated(tmp_path, plan):
    stages = []
    tuned = Variant("plan a", DeepCacheConfig(plan=plan))
    chosen = settings(tuned, schedulers=("ddim", "euler"))
    result = run(tmp_path, chosen, on_progress=lambda now: stages.append(now.stage))
    generated, empty = result["groups"]
    assert generated["cells"]
    assert (empty["reference"], empty["cells"]) == (None, [])
    assert not any("euler" in stage for stage in stages)


def test_a_forced_plan_runs_in_every_group(tmp_path, plan):
    forced = Variant("plan a", DeepCacheConfig(plan=plan, force_plan=True))
    result = run(tmp_path, settings(forced, schedulers=("ddim", "euler"), steps=(4, 6)))
    assert [group["cells"][0]["pattern"] for group in result["groups"]] == [
        plan.schedule.stretched(steps).pattern(steps) for steps in (4, 6, 4, 6)
    ]


@pytest.mark.parametrize("scheduler", ["pndm", "heun"])
def test_a_plan_with_several_calls_per_step_fits_its_number_of_steps(tmp_path, scheduler):
    pipe = small_pipeline()
    set_scheduler(pipe, scheduler)
    pipe.scheduler.set_timesteps(4)
    calls = len(pipe.scheduler.timesteps)
    assert calls > 4
    plan = plan_for(pipe, (Step(True), *[Step(False)] * (calls - 1)), steps=4)
    result = run(tmp_path, settings(Variant("plan a", DeepCacheConfig(plan=plan)), schedulers=(scheduler,)))
    assert cells_of(result)["plan a"]["pattern"] == "F" + "." * (calls - 1)


@pytest.fixture
def generations(monkeypatch):
    """The pipeline calls that are made."""
    made = []
    call = ablation_group.BatchSampler.sample

    def sample(self, *args):
        made.append(self)
        return call(self, *args)

    monkeypatch.setattr(ablation_group.BatchSampler, "sample", sample)
    return made


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": (5,)}, "'plan a' was tuned for another scheduler, number of steps .*plan=FILE force"),
        (
            {"schedulers": ("euler",)},
            "'plan a' was tuned for another scheduler, number of steps .*plan=FILE force",
        ),
    ],
)
def test_a_plan_that_fits_no_group_is_refused_before_generating(tmp_path, plan, generations, changed, words):
    tuned = Variant("plan a", DeepCacheConfig(plan=plan))
    with pytest.raises(ValueError, match=words):
        run(tmp_path, settings(TWO, tuned, **{"schedulers": ("ddim",)} | changed))
    assert generations == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (settings(TWO, parse_variant("I=2 B=9")), "between 0 and 3 for this UNet2DConditionModel, got 9"),
        (settings(steps=(4, 1001)), "steps must be <= 1000 for this model, got 1001"),
        (settings(schedulers=("ddim", "eulr")), "there is no scheduler 'eulr'"),
        (settings(size=(16, 20)), "height must be a multiple of 8 for this model, got 20"),
        (settings(TWO, parse_variant("I=2 guidance-reuse"), guidances=(1.0,)), "guidance_reuse .* turn it off"),
    ],
)
def test_unsupported_settings_are_refused_before_generating(tmp_path, generations, chosen, words):
    with pytest.raises(ValueError, match=words):
        run(tmp_path, chosen)
    assert generations == []
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_another_model_is_refused_before_generating(tmp_path, generations):
    other = plan_for(small_pipeline(), (Step(True), Step(False)) * 2, steps=4)
    other = replace(other, model=other.model | {"structure": "of another"})
    with pytest.raises(ValueError, match=r"tuned for something else.*other layers"):
        run(tmp_path, settings(Variant("plan a", DeepCacheConfig(plan=other))))
    assert generations == []


def test_a_pipeline_without_prompts_is_refused(tmp_path, model):
    model(unconditional_pipeline)
    with pytest.raises(ValueError, match="a DDPMPipeline does not generate images from prompts alone"):
        run(tmp_path, settings(guidances=()))


def test_the_check_of_guidance_reuse_leaves_no_hook(tmp_path, model):
    pipe = small_pipeline()
    model(lambda: pipe)
    kind = type(pipe)
    run(tmp_path, settings(parse_variant("I=2 guidance-reuse"), parse_variant("I=3 guidance-reuse")))
    assert type(pipe) is kind
    for module in pipe.unet.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_second_variant_is_compared_without_the_first(tmp_path, model):
    result = run(tmp_path, settings(parse_variant("I=2"), parse_variant("I=3")))
    second = cells_of(result)["I=3 B=0"]
    images, _ = generated(config=parse_variant("I=3").config)
    check(second, images, generated()[0])


def test_images_with_nan_are_refused_with_a_fix(tmp_path, model):
    pipe = small_pipeline()
    for weight in pipe.vae.parameters():
        weight.data.fill_(math.nan)
    model(lambda: pipe)
    with pytest.raises(ValueError, match=r"without caching: the model in float32 produced NaN.*Use float32"):
        run(tmp_path, settings())


def test_uncountable_costs_are_reported(tmp_path, monkeypatch):
    def uncountable(*_):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(stats, "count_costs", uncountable)
    with pytest.raises(ValueError, match=r"the cost of this model's steps cannot be counted: .*no meta kernel"):
        run(tmp_path, settings())


def test_out_of_memory_is_reported_with_a_suggestion(tmp_path, model):
    pipe = small_pipeline()

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pipe.unet.register_forward_pre_hook(fail)
    model(lambda: pipe)
    with pytest.raises(MemoryError, match="smaller batch"):
        run(tmp_path, settings())


def test_the_settings_are_recorded(tmp_path):
    result = run(tmp_path, settings(TWO, seeds=(3, 9), schedulers=("euler",), samples=1, batch=1))
    found = result["settings"]
    assert (found["model"], found["pipeline"], found["unet"]) == ("some model", "SmallPipeline", "UNet2DConditionModel")
    assert (found["guidances"], found["width"], found["height"], found["dtype"]) == ([3.0], 16, 16, "float32")
    assert (found["batch"], found["seeds"], found["samples"], found["threads"]) == (1, [3, 9], 1, 1)
    assert (found["schedulers"], found["steps"], found["labels"]) == (["euler"], [4], ["I=2 B=0"])
    assert found["prompts"] == list(PROMPTS[:2])
    assert result["seed"] == 3


def test_progress_rises_to_the_end(tmp_path):
    told = []
    run(tmp_path, settings(steps=(4, 3)), on_progress=told.append)
    done = [round(now.done, 6) for now in told]
    assert done == sorted(done)
    assert told[-1].done == told[-1].total
    stages = list(dict.fromkeys(now.stage for now in told))
    assert stages[:3] == [
        "loading some model",
        "model, 4 steps, guidance 3: without caching",
        "model, 4 steps, guidance 3: I=2 B=0",
    ]
    assert stages[-1] == "model, 3 steps, guidance 3: 2 steps"


def test_a_grid_is_every_combination():
    variants = grid((2, 3), (0, 1), ("uniform", "non-uniform"), ("none", "quadratic"), (False, True))
    assert len(variants) == len({variant.name for variant in variants}) == 32
    assert all(parse_variant(variant.name) == variant for variant in variants)
    # The last is for skipped steps.
    assert [variant.config.forecast for variant in grid((2,))] == list(FORECASTS[:-1])
    with pytest.raises(ValueError, match="forecast must be one of"):
        grid((2,), forecasts=("cubic",))


def test_a_grid_omits_invalid_and_equal_combinations():
    kinds = ("shallow", "skipped", "alternating")
    variants = grid((3,), (1, 2), forecasts=("none", "response"), guidance_reuse=(False, True), between=kinds)
    assert [variant.name for variant in variants] == [
        "I=3 B=1",
        # Skipped steps cut the U-Net nowhere: one branch stands for all.
        "I=3 B=1 skipped",
        "I=3 B=1 alternating",
        "I=3 B=1 guidance-reuse",
        "I=3 B=1 guidance-reuse alternating",
        "I=3 B=1 response skipped",
        "I=3 B=1 response alternating",
        "I=3 B=1 response guidance-reuse alternating",
        "I=3 B=2",
        "I=3 B=2 alternating",
        "I=3 B=2 guidance-reuse",
        "I=3 B=2 guidance-reuse alternating",
        "I=3 B=2 response alternating",
        "I=3 B=2 response guidance-reuse alternating",
    ]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompts": ()}, "prompts must have at least one value"),
        ({"prompts": ("a", " ")}, "a prompt must not be empty"),
        ({"variants": ()}, "variants must have at least one value"),
        ({"variants": (TWO, TWO)}, "variants must differ"),
        ({"variants": (TWO, Variant("I=2 B=0", DeepCacheConfig(4)))}, "two variants are called 'I=2 B=0'"),
        ({"steps": ()}, "steps must have at least one value"),
        ({"steps": (4, 4)}, "steps must differ"),
        ({"steps": (4, 1)}, "steps must be 2 or more, got 1"),
        ({"schedulers": ("ddim", "ddim")}, "schedulers must differ"),
        ({"seeds": ()}, "seeds must have at least one value"),
        ({"seeds": (0, 0)}, "seeds must differ"),
        ({"seeds": (0, -1)}, "seed must be between 0 and"),
        ({"seeds": (2**63 - 1,)}, "seed must be between 0 and"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"samples": -1}, "samples must be 0 or more, got -1"),
        ({"guidances": (2.0, float("nan"))}, "guidance must be >= 0, got nan"),
        ({"guidances": (2.0, 2)}, "guidances must differ"),
        ({"guidance": 4.0}, r"guidance and guidances cannot be combined, got 4.0 and \(3.0,\)"),
    ],
)
def test_values_out_of_range_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        replace(settings(), **changed)


def test_a_removed_deepcache_does_not_affect_the_images(tmp_path, model):
    pipe = small_pipeline()
    apply_deepcache(pipe, DeepCacheConfig(4))
    remove_deepcache(pipe)
    model(lambda: pipe)
    check(cells_of(run(tmp_path, settings()))["I=2 B=0"], generated(config=TWO.config)[0], generated()[0])
