"""The DeepCache node in a minimal replacement for ComfyUI's engine."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks.comfyui_engine.nodes import pattern, report, with_deepcache
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.comfyui.ldm_unet import CHANNELS, SpatialTransformer
from tests.comfyui.stand_in import NEGATIVE, POSITIVE, cond, model, sample

BRANCHES = range(6)


def residuals(rows: int) -> dict[str, list[torch.Tensor]]:
    """The residuals of a ControlNet: blocks pop them from the end of each list."""
    wide, sides = [CHANNELS] * 4 + [2 * CHANNELS] * 2, [8, 8, 8, 4, 4, 4]
    made = torch.Generator().manual_seed(5)
    output = [
        torch.randn(1, c, s, s, generator=made).expand(rows, -1, -1, -1) for c, s in zip(wide, sides, strict=True)
    ]
    return {"output": output, "middle": [output[-1] / 3], "input": [output[0] / 4]}


def _by_number(h: torch.Tensor, skip: torch.Tensor, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch that depends on the block number and the transformer count."""
    number = options["block"][1]
    return h * (1 + number / 10), skip * (1 + options["transformer_index"] / 20)


def _values(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Replaces attention by the values of the first token."""
    return v[:, :1].expand(-1, q.shape[1], -1)


def _with(patcher: Any, *paths: tuple[Any, ...]) -> Any:
    """A model with patches, each with the path in its options."""
    changed = patcher.clone()
    for *names, last, value in paths:
        options = changed.model_options["transformer_options"]
        for name in names:
            options = options.setdefault(name, {})
        options[last] = value
    return changed


def _perturbed(guider: Any, x: Any, sigma: Any, options: dict[str, Any], guided: Any, positive: Any) -> torch.Tensor:
    """Perturbed-attention guidance: evaluates the positive cond again, without attention in the middle block."""
    inner = options["transformer_options"] | {"patches_replace": {("middle", 0): _values}}
    conds, guider._conds = guider._conds, [guider._conds[0], []]
    try:
        found, _ = guider._conds_of(x, sigma, {**options, "transformer_options": inner})
    finally:
        guider._conds = conds
    return guided + (positive - found)


def _pag(patcher: Any) -> Any:
    changed = patcher.clone()
    changed.model_options["again"] = (_perturbed,)
    return changed


PLAIN: dict[str, Any] = {}
CONDITIONS = {
    "plain": (model, PLAIN),
    "two images": (model, {"batch": 2}),
    "an odd size": (model, {"size": (7, 9)}),
    "one cond after another": (model, {"together": 1}),
    "as memory allows": (model, {"together": lambda call: 1 + call % 2}),
    "without guidance": (model, {"cfg": 1.0}),
    "two prompts": (model, {"positive": [POSITIVE, cond(11)]}),
    "areas": (model, {"positive": [cond(12, area=slice(0, 5)), cond(13, area=slice(3, 8))], "negative": [NEGATIVE]}),
    "areas of one shape": (model, {"positive": [cond(12, area=slice(0, 4)), cond(13, area=slice(4, 8))]}),
    "a ControlNet": (model, {"positive": [cond(14, control=residuals)], "negative": [cond(15, control=residuals)]}),
    "a ControlNet, one after another": (model, {"positive": [cond(14, control=residuals)], "together": 1}),
    "patches by number": (lambda: _with(model(), ("patches", "output_block_patch", [_by_number])), PLAIN),
    "an input patch": (lambda: _with(model(), ("patches", "input_block_patch", [lambda h, options: h * 1.1])), PLAIN),
    "after the middle block": (
        lambda: _with(model(), ("patches", "middle_block_after_patch", [lambda given: {"h": given["h"] * 1.5}])),
        PLAIN,
    ),
    "replaced attention": (
        lambda: _with(model(), ("patches_replace", ("output", 4), _values)),
        PLAIN,
    ),
    "perturbed attention": (lambda: _pag(model()), PLAIN),
}


@pytest.mark.parametrize(("make", "settings"), CONDITIONS.values(), ids=CONDITIONS)
class TestConditions:
    def test_interval_one_is_bit_identical(self, make, settings):
        patcher = make()
        assert torch.equal(sample(with_deepcache(patcher, interval=1), **settings), sample(patcher, **settings))

    @pytest.mark.parametrize("branch", BRANCHES)
    def test_a_shallow_step_with_the_true_feature_is_exact(self, branch, make, settings):
        patcher = make()
        changed = with_deepcache(patcher, branch=branch)
        expected = sample(patcher, sampler="repeat", steps=6, **settings)
        found = sample(changed, sampler="repeat", steps=6, **settings)
        assert pattern(changed) == "F..F.."
        assert torch.equal(found, expected)

    def test_model_is_restored_after_a_run(self, make, settings):
        patcher = make()
        plain, unet = sample(patcher, **settings), patcher.model.diffusion_model
        before = [dict(vars(module)) for module in unet.modules()]
        sample(with_deepcache(patcher), **settings)
        assert [dict(vars(module)) for module in unet.modules()] == before
        assert not any(module._forward_hooks for module in unet.modules())
        assert torch.equal(sample(patcher, **settings), plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"forecast": "linear", "branch": 2},
        {"between": "skipped", "forecast": "response"},
        {"between": "alternating", "forecast": "limited"},
    ],
    ids=str,
)
def test_result_is_independent_of_batch_composition(settings):
    changed = with_deepcache(model(), **settings)
    expected = sample(changed)
    for together in (1, lambda call: 1 + call % 2, lambda call: 2 - call % 2):
        torch.testing.assert_close(sample(changed, together=together), expected, rtol=1e-4, atol=1e-4)


def test_evaluations_are_counted_regardless_of_noise_level():
    changed = with_deepcache(model(), interval=2, forecast="linear")
    assert sample(changed, sampler="heun", steps=4).isfinite().all()
    # Two evaluations per step, one in the last.
    assert pattern(changed) == "F.F.F.F"


def test_forecast_of_a_skipped_step_matches_hand_calculation():
    changed, seen = with_deepcache(model(), between="skipped", interval=2), []
    _around(changed, lambda run: seen.append(run()) or seen[-1])
    sample(changed)
    for full, skipped in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(full, skipped)


def test_guidance_reuse_matches_hand_calculation():
    changed, seen = with_deepcache(model(), guidance_reuse=True, interval=2), []
    _around(changed, lambda run: seen.append(run()) or seen[-1])
    sample(changed, sampler="repeat", steps=2)
    assert "(1 with guidance reuse)" in report(changed)
    # The true feature and the true difference.
    torch.testing.assert_close(seen[1], seen[0])


def test_guidance_reuse_runs_only_the_positive_cond():
    changed, rows = with_deepcache(model(), guidance_reuse=True), []
    changed.add_wrapper_with_key("diffusion_model", "within", _counting(rows))
    sample(changed, steps=6)
    assert rows == [2, 1, 1, 2, 1, 1]
    rows.clear()
    sample(changed, steps=4, together=1)
    assert rows == [1] * 8
    assert "with guidance reuse" not in report(changed)


def test_guidance_reuse_uses_the_difference_of_the_last_full_step():
    changed, rows = with_deepcache(model(), guidance_reuse=True, interval=2), []
    changed.add_wrapper_with_key("diffusion_model", "within", _counting(rows))
    # Separate calls at the second full step, one call after it.
    sample(changed, steps=6, together=lambda call: 1 if call in (2, 3) else 2)
    assert rows == [2, 1, 1, 1, 2, 2, 1]


def test_feature_changes_size():
    """A patch that shrinks images in the first steps (Deep Shrink) changes the size."""

    def smaller(h, options):
        if options["block"] == ("input", 2) and float(options["sigmas"]) > 5:
            return torch.nn.functional.interpolate(h, scale_factor=0.5)
        return h

    def larger(h, skip, options):
        return torch.nn.functional.interpolate(h, skip.shape[2:]), skip

    patches = {"input_block_patch": [smaller], "output_block_patch": [larger]}
    patcher = _with(model(), *(("patches", name, value) for name, value in patches.items()))
    for forecast in ("none", "linear", "limited"):
        changed = with_deepcache(patcher, interval=2, forecast=forecast, branch=4)
        assert sample(changed).isfinite().all()
        assert pattern(changed) == "F.F.F.F.F."


def test_late_cond_starts_with_a_full_step():
    late = cond(16, active=lambda sigma: sigma <= 7.5)
    changed = with_deepcache(model(), interval=4)
    sample(changed, positive=[POSITIVE, late], steps=10)
    # It starts at the fourth evaluation and shares its call with conds that are not due yet.
    assert pattern(changed) == "F..FF...F."
    assert "full though not scheduled, first call of its slot: step 3" in report(changed)


def test_cond_absent_at_the_last_full_step_is_full():
    # Evaluations at 10, 8, 6, 4 and 2, of which the first, the third and the fifth are full.
    at_times = cond(17, active=lambda sigma: sigma != 6)
    changed = with_deepcache(model(), interval=2)
    sample(changed, positive=[POSITIVE, at_times], steps=5)
    assert pattern(changed) == "F.FFF"
    assert "first call of its slot: step 3" in report(changed)


def test_moving_windows_are_full_and_fixed_ones_are_cached():
    for windows, expected in (([(0, 1)] * 6, "F.F.F."), ([(n, n + 1) for n in range(6)], "FFFFFF")):
        for name in ("context_window", "ad_params"):
            changed = with_deepcache(model(), interval=2)
            _calls(
                changed,
                lambda options, n, name=name, windows=windows: options.update({name: _window(name, windows[n])}),
            )
            sample(changed, steps=6)
            assert pattern(changed) == expected


def test_unused_cache_is_dropped_after_an_evaluation():
    kept = []
    changed = with_deepcache(model(), interval=1)
    _calls(changed, lambda options, number: options.update(ad_params={"sub_idxs": [number]}))
    applied = changed.model_options["transformer_options"]["deepcache"]
    _around(changed, lambda run: (run(), kept.append(len(applied._last._slots)))[0])
    sample(changed, cfg=1.0, steps=6)
    assert max(kept) <= 2


def test_patches_that_count_blocks_make_shallow_steps_full():
    """SUPIR's patches start to count after the middle block."""
    counts = {"middle_block_after_patch": [lambda given: given], "output_block_patch": [_by_number]}
    patcher = _with(model(), *(("patches", name, value) for name, value in counts.items()))
    changed = with_deepcache(patcher)
    assert torch.equal(sample(changed), sample(patcher))
    assert "a patch counts the output blocks from the middle block on: step 1, 2, 4" in report(changed)
    skipped = with_deepcache(patcher, between="skipped")
    sample(skipped)
    assert pattern(skipped) == "F--F--F--F"


@pytest.mark.parametrize("branch", BRANCHES)
def test_patches_that_run_a_layer_without_calling_it(branch):
    def run(layer, h, emb, context, options):
        return layer.forward(h, context, options) * 1.1

    patcher = _with(model(), ("patches", "forward_timestep_embed_patch", [(SpatialTransformer, run)]))
    changed = with_deepcache(patcher, branch=branch)
    expected = sample(patcher, sampler="repeat", steps=3)
    assert torch.equal(sample(changed, sampler="repeat", steps=3), expected)
    # At the deepest branch the feature is the output of the last layer of the middle block, which no hook sees.
    assert pattern(changed) == ("FFF" if branch == max(BRANCHES) else "F..")


def test_model_gets_the_same_options_as_without_deepcache():
    """ComfyUI's node for `torch.compile` runs graphs without comparing the options with those at compile time."""
    seen = []

    def note(executor, x, timesteps, context, y, control, options):
        seen.append((type(options), set(options)))
        return executor(x, timesteps, context, y, control, options)

    for changed in (model(), with_deepcache(model(), interval=2), with_deepcache(model(), end_percent=0.5)):
        changed.add_wrapper_with_key("diffusion_model", "within", note)
        sample(changed, steps=4)
    assert all(each == seen[0] for each in seen)
    assert seen[0][0] is dict


@pytest.mark.parametrize("settings", [{"interval": 1}, {"branch": 3}, {"guidance_reuse": True}], ids=str)
def test_batch_run_in_parts(settings):
    def part_by_part(unet, x, timesteps, context, y, control, options):
        parts = [
            unet(x[n : n + 1], timesteps[n : n + 1], context[n : n + 1], y, control, options) for n in range(len(x))
        ]
        return torch.cat(parts)

    patcher = model()
    patcher.model_options["model_function_wrapper"] = part_by_part
    changed = with_deepcache(patcher, **settings)
    expected = sample(patcher, sampler="repeat", steps=3)
    assert torch.equal(sample(changed, sampler="repeat", steps=3), expected)
    assert "with guidance reuse" not in report(changed)


@pytest.mark.parametrize(
    ("scales", "forecast"), [({"cfg": 1.0, "cfg1": 8.0, "cfg2": 2.0}, "response"), ({"cfg": 2.0}, "limited")], ids=str
)
def test_guider_with_two_scales_uses_the_larger(scales, forecast):
    changed = with_deepcache(model(), preset="balanced")
    applied = changed.model_options["transformer_options"]["deepcache"]
    guider = SimpleNamespace(model_patcher=changed, model_options=changed.model_options, **scales)
    assert applied.begin_run(guider, None, torch.zeros(11))._config.forecast == forecast


def test_single_evaluation_sampler_with_heun_in_its_name():
    changed = with_deepcache(model(), adaptive_threshold=0.1, interval=4, forecast="linear")
    assert sample(changed, sampler="dpmpp_2m_sde_heun", steps=12).isfinite().all()


def test_start_and_end_percent():
    changed = with_deepcache(model(), start_percent=0.25, end_percent=0.75)
    sample(changed, steps=10)
    # Noise levels 10 to 1; those above 7.5 and up to 2.5 are outside the range.
    assert pattern(changed) == "FFFF..F.FF"
    assert "outside start_percent to end_percent: step 0, 1, 2, 8, 9" in report(changed)


def test_noise_level_is_not_read_without_limits(monkeypatch):
    readers, read = [], torch.Tensor.__float__
    monkeypatch.setattr(
        torch.Tensor, "__float__", lambda tensor: readers.append(sys._getframe(1).f_globals["__name__"]) or read(tensor)
    )
    sample(with_deepcache(model()))
    assert readers
    assert not any(reader.startswith("DeepCache.") for reader in readers)
    sample(with_deepcache(model(), end_percent=0.9))
    assert "DeepCache.comfyui.sampler" in readers


def test_plan_sets_each_step(tmp_path):
    path = tmp_path / "plan.json"
    steps = [Step(True), Step(False, 2), Step(False, forecast="linear", skipped=True), Step(True)]
    Plan(StepSchedule(tuple(steps)), {}, {}, guidance=(4.0, 4.0)).to_file(path)
    changed = with_deepcache(model(), plan=str(path))
    sample(changed, steps=4)
    assert pattern(changed) == "F.-F"
    with pytest.raises(ValueError, match="the plan is for 4 steps, but the sampler runs 5"):
        sample(changed, steps=5)
    with pytest.raises(ValueError, match=r"the guidance scale is 7\.5 and not 4"):
        sample(changed, steps=4, cfg=7.5)
    with pytest.raises(ValueError, match="needs a sampler with one evaluation per step, and heun has several"):
        sample(changed, steps=4, sampler="heun")


def test_adaptive_schedule_uses_the_forecast_error():
    patterns = {}
    for threshold in (0.0001, 1.0):
        changed = with_deepcache(model(), interval=4, adaptive_threshold=threshold, forecast="linear", branch=5)
        sample(changed, steps=40)
        patterns[threshold] = pattern(changed)
    assert patterns[0.0001] == "F" * 40
    assert 10 <= patterns[1.0].count("F") < 30


@pytest.mark.parametrize(("name", "interval"), [("faithful", 2), ("balanced", 3), ("fast", 5)])
def test_presets(name, interval):
    patcher = model()
    changed = with_deepcache(patcher, preset=name, interval=99)
    for cfg, forecast in ((2.0, "limited"), (7.5, "response")):
        found = sample(changed, cfg=cfg, steps=12)
        as_said = with_deepcache(patcher, interval=interval, between="skipped", forecast=forecast)
        assert torch.equal(found, sample(as_said, cfg=cfg, steps=12))


def test_channels_of_an_input_image_are_not_forecast():
    patcher = model(taken=9)
    patcher.model_options["concat"] = torch.ones(1, 5, 8, 8)
    changed = with_deepcache(patcher, between="skipped", forecast="response")
    assert sample(changed).isfinite().all()
    assert pattern(changed) == "F--F--F--F"


class TestRuns:
    def test_runs_are_independent(self):
        changed = with_deepcache(model(), forecast="linear")
        first = sample(changed)
        sample(changed, seed=7, steps=5)
        assert torch.equal(sample(changed), first)

    def test_runs_are_independent_after_an_error(self):
        changed, patcher = with_deepcache(model(), forecast="linear"), model()
        first, plain = sample(changed), sample(patcher)
        for at in range(1, 9):
            stopped = _stops(changed, at)
            with pytest.raises(KeyboardInterrupt):
                sample(changed)
            stopped.remove()
            assert torch.equal(sample(changed), first)
        changed.model_options["transformer_options"].pop("wrappers")
        assert torch.equal(sample(changed), plain)

    def test_two_threads_with_one_model_have_separate_runs(self):
        changed = with_deepcache(model(), interval=2, forecast="linear")
        expected = [sample(changed, seed=seed, steps=8) for seed in range(2)]
        found: dict[int, torch.Tensor] = {}

        def run(seed: int) -> None:
            found[seed] = sample(changed, seed=seed, steps=8)

        for _ in range(5):
            threads = [threading.Thread(target=run, args=(seed,)) for seed in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(torch.equal(found[seed], expected[seed]) for seed in range(2))

    def test_clone_of_the_patched_model_has_deepcache(self):
        changed = with_deepcache(model())
        clone = _with(changed, ("patches", "input_block_patch", [lambda h, options: h]))
        assert torch.equal(sample(clone), sample(changed))
        assert pattern(clone) == "F..F..F..F"

    def test_deep_copied_clone_shares_the_report(self):
        changed = with_deepcache(model())
        sample(changed)
        clone = changed.clone()
        clone.model_options = copy.deepcopy(changed.model_options)
        assert report(clone) == report(changed)
        sample(clone, steps=4)
        assert pattern(changed) == "F..F"

    def test_interrupted_run_keeps_no_tensor(self):
        changed = with_deepcache(model(), forecast="linear", interval=1)
        stopped = _stops(changed, 3)
        with pytest.raises(KeyboardInterrupt):
            sample(changed)
        stopped.remove()
        applied = changed.model_options["transformer_options"]["deepcache"]
        (executor,) = applied._executors._executors.values()
        assert not executor.take()

    def test_calls_of_one_evaluation_in_several_threads(self):
        """Several devices, each with a copy of the model, use several threads."""
        changed, other = with_deepcache(model(), forecast="linear", interval=2), model()
        expected = sample(changed, together=1)

        def in_a_thread(unet, *args):
            found = []
            thread = threading.Thread(target=lambda: found.append(next(models)(*args)))
            thread.start()
            thread.join()
            return found[0]

        models = itertools.cycle([changed.model.diffusion_model, other.model.diffusion_model])
        changed.model_options["model_function_wrapper"] = in_a_thread
        assert torch.equal(sample(changed, together=1), expected)

    def test_last_of_two_nodes_applies(self):
        patcher = model()
        twice = with_deepcache(with_deepcache(patcher, interval=5), interval=2)
        assert torch.equal(sample(twice), sample(with_deepcache(patcher, interval=2)))

    def test_other_wrappers_stay(self):
        seen = []

        def wrapper(executor, x, *args, **kwargs):
            seen.append(len(args))
            return executor(x, *args, **kwargs)

        patcher = model()
        patcher.add_wrapper_with_key("diffusion_model", "another", wrapper)
        changed = with_deepcache(patcher)
        changed.add_wrapper_with_key("diffusion_model", "one more", wrapper)
        assert torch.equal(sample(changed), sample(with_deepcache(model())))
        # By position, as the engine calls them.
        assert set(seen) == {5}

    def test_blocks_replaced_between_two_steps(self):
        patcher = model()
        changed = with_deepcache(patcher, interval=2)
        unet = patcher.model.diffusion_model

        def replace(module, args):
            unet.output_blocks[5] = type(unet.output_blocks[5])(*unet.output_blocks[5])

        handle = unet.register_forward_pre_hook(replace)
        assert torch.equal(sample(changed), sample(with_deepcache(model(), interval=2)))
        handle.remove()


def test_each_kind_of_step_has_one_compiled_graph():
    patcher = model()
    expected = sample(with_deepcache(patcher))
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = patcher.clone()
    compiled.model_options["compiled"] = torch.compile(patcher.model.diffusion_model, backend=graphs)
    changed = with_deepcache(compiled)
    torch.testing.assert_close(sample(changed), expected)
    built = graphs.frame_count
    assert pattern(changed) == "F..F..F..F"
    torch.testing.assert_close(sample(changed), expected)
    assert graphs.frame_count == built
    torch._dynamo.reset()


class TestWrongInput:
    def test_model_without_long_skips_is_rejected(self):
        patcher = model()
        patcher.model.diffusion_model = torch.nn.Sequential()
        with pytest.raises(TypeError, match=r"needs a U-Net .* this model is a Sequential; EasyCache"):
            with_deepcache(patcher)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"branch": 6}, "branch must be between 0 and 5 for this model, got 6"),
            ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent must be less than end_percent, got 0.5"),
            ({"forecast": "response"}, "forecast='response' is for skipped steps"),
            ({"guidance_reuse": True, "between": "skipped"}, "guidance_reuse halves shallow steps"),
        ],
        ids=str,
    )
    def test_wrong_settings_are_rejected(self, settings, message):
        with pytest.raises(ValueError, match=message):
            with_deepcache(model(), **settings)

    def test_file_that_is_not_a_plan(self, tmp_path):
        with pytest.raises(OSError, match=r"plan\.json"):
            with_deepcache(model(), plan=str(tmp_path / "plan.json"))

    def test_report_before_the_first_run(self):
        assert report(with_deepcache(model())) == "no run yet"


def test_report_without_deepcache():
    assert report(model()).startswith("DeepCache is not on this model")


def test_presets_ignore_the_custom_inputs():
    # Both are invalid with `custom`.
    with_deepcache(model(), preset="balanced", branch=99, forecast="response")


def test_report():
    changed = with_deepcache(model())
    sample(changed)
    first, second = report(changed).splitlines()
    assert first == "F..F..F..F"
    assert second.startswith("4 full and 6 shallow steps, ")
    # The engine's tests count these by hand.
    share = float(second.rsplit(": ")[-1].rstrip("%")) / 100
    assert 0.4 < share < 1


def test_report_in_the_docs():
    changed = with_deepcache(model(), preset="balanced")
    sample(changed, cfg=7.5, steps=20, size=(64, 64))
    page = (Path(__file__).parents[2] / "docs" / "comfyui.md").read_text(encoding="utf-8")
    assert f"```text\n{report(changed)}\n```" in page


def _window(name: str, frames: tuple[int, int]) -> Any:
    return SimpleNamespace(index_list=list(frames)) if name == "context_window" else {"sub_idxs": list(frames)}


def _around(patcher: Any, function: Any) -> None:
    """Wraps each call of the model with DeepCache in a function."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return function(lambda: executor(*args, **kwargs))

    _outermost(patcher, wrapper)


def _calls(patcher: Any, change: Any) -> None:
    """Changes the options of each call before DeepCache sees them; the function gets the number of the call."""
    count = itertools.count()

    def wrapper(executor: Any, x: Any, timesteps: Any, context: Any, y: Any, control: Any, options: Any) -> Any:
        change(options, next(count))
        return executor(x, timesteps, context, y, control, options)

    _outermost(patcher, wrapper)


def _outermost(patcher: Any, wrapper: Any) -> None:
    wrappers = patcher.model_options["transformer_options"]["wrappers"]
    around = [wrapper, *wrappers["diffusion_model"].get("around", ())]
    wrappers["diffusion_model"] = {"around": around} | wrappers["diffusion_model"] | {"around": around}


def _counting(rows: list[int]) -> Any:
    """A wrapper that records the batch sizes of the calls it gets."""

    def wrapper(executor: Any, x: Any, *args: Any) -> Any:
        rows.append(len(x))
        return executor(x, *args)

    return wrapper


def _stops(patcher: Any, at: int) -> Any:
    """Interrupts the model at call number `at` of its last block."""
    layer, count = patcher.model.diffusion_model.output_blocks[5][0], itertools.count(1)

    def interrupt(module: Any, args: Any) -> None:
        if next(count) == at:
            raise KeyboardInterrupt

    return layer.register_forward_pre_hook(interrupt)
