"""The DeepCache node in a stand-in for ComfyUI's engine."""

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

from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.comfyui.ldm_unet import CHANNELS, SpatialTransformer
from tests.comfyui.nodes import pattern, report, with_deepcache
from tests.comfyui.stand_in import NEGATIVE, POSITIVE, cond, model, sample

BRANCHES = range(6)


def residuals(rows: int) -> dict[str, list[torch.Tensor]]:
    """What a ControlNet adds: the last of each list goes to the block that takes first."""
    wide, sides = [CHANNELS] * 4 + [2 * CHANNELS] * 2, [8, 8, 8, 4, 4, 4]
    made = torch.Generator().manual_seed(5)
    output = [
        torch.randn(1, c, s, s, generator=made).expand(rows, -1, -1, -1) for c, s in zip(wide, sides, strict=True)
    ]
    return {"output": output, "middle": [output[-1] / 3], "input": [output[0] / 4]}


def _by_number(h: torch.Tensor, skip: torch.Tensor, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch that goes by the number of the block and the count of transformers."""
    number = options["block"][1]
    return h * (1 + number / 10), skip * (1 + options["transformer_index"] / 20)


def _values(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Instead of attention: the values of the first token."""
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
    """Perturbed-attention guidance: the positive cond once more, without attention in the middle block."""
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
    def test_with_interval_one_no_bit_differs(self, make, settings):
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

    def test_nothing_is_left_on_the_model(self, make, settings):
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
def test_what_goes_into_a_batch_does_not_matter(settings):
    changed = with_deepcache(model(), **settings)
    expected = sample(changed)
    for together in (1, lambda call: 1 + call % 2, lambda call: 2 - call % 2):
        torch.testing.assert_close(sample(changed, together=together), expected, rtol=1e-4, atol=1e-4)


def test_steps_are_counted_and_not_told_by_their_noise_level():
    changed = with_deepcache(model(), interval=2, forecast="linear")
    assert sample(changed, sampler="heun", steps=4).isfinite().all()
    # Two evaluations a step, one at the last.
    assert pattern(changed) == "F.F.F.F"


def test_the_forecast_of_a_skipped_step_by_hand():
    changed, seen = with_deepcache(model(), between="skipped", interval=2), []
    _around(changed, lambda run: seen.append(run()) or seen[-1])
    sample(changed)
    for full, skipped in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(full, skipped)


def test_guidance_reuse_by_hand():
    changed, seen = with_deepcache(model(), guidance_reuse=True, interval=2), []
    _around(changed, lambda run: seen.append(run()) or seen[-1])
    sample(changed, sampler="repeat", steps=2)
    assert "(1 with guidance reuse)" in report(changed)
    # The true feature and the true difference.
    torch.testing.assert_close(seen[1], seen[0])


def test_guidance_reuse_runs_the_positive_cond_alone():
    changed, rows = with_deepcache(model(), guidance_reuse=True), []
    changed.add_wrapper_with_key("diffusion_model", "within", _counting(rows))
    sample(changed, steps=6)
    assert rows == [2, 1, 1, 2, 1, 1]
    rows.clear()
    sample(changed, steps=4, together=1)
    assert rows == [1] * 8
    assert "with guidance reuse" not in report(changed)


def test_guidance_reuse_takes_the_difference_of_the_last_full_step():
    changed, rows = with_deepcache(model(), guidance_reuse=True, interval=2), []
    changed.add_wrapper_with_key("diffusion_model", "within", _counting(rows))
    # One by one at the second full step and together after it.
    sample(changed, steps=6, together=lambda call: 1 if call in (2, 3) else 2)
    assert rows == [2, 1, 1, 1, 2, 2, 1]


def test_a_feature_that_changes_its_size():
    """As with a patch that makes images smaller at first (Deep Shrink)."""

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


def test_a_cond_that_begins_later_is_full_at_first():
    late = cond(16, active=lambda sigma: sigma <= 7.5)
    changed = with_deepcache(model(), interval=4)
    sample(changed, positive=[POSITIVE, late], steps=10)
    # It is there from the fourth evaluation on, and shares its call with those that are due later.
    assert pattern(changed) == "F..FF...F."
    assert "full though not scheduled, first call of its slot: step 3" in report(changed)


def test_a_cond_that_was_not_there_at_the_last_full_step_is_full():
    # Evaluations at 10, 8, 6, 4 and 2, of which the first, the third and the fifth are full.
    at_times = cond(17, active=lambda sigma: sigma != 6)
    changed = with_deepcache(model(), interval=2)
    sample(changed, positive=[POSITIVE, at_times], steps=5)
    assert pattern(changed) == "F.FFF"
    assert "first call of its slot: step 3" in report(changed)


def test_windows_that_move_are_full_and_others_are_not():
    for windows, expected in (([(0, 1)] * 6, "F.F.F."), ([(n, n + 1) for n in range(6)], "FFFFFF")):
        for name in ("context_window", "ad_params"):
            changed = with_deepcache(model(), interval=2)
            _calls(
                changed,
                lambda options, n, name=name, windows=windows: options.update({name: _window(name, windows[n])}),
            )
            sample(changed, steps=6)
            assert pattern(changed) == expected


def test_what_one_evaluation_does_not_use_is_dropped():
    kept = []
    changed = with_deepcache(model(), interval=1)
    _calls(changed, lambda options, number: options.update(ad_params={"sub_idxs": [number]}))
    applied = changed.model_options["transformer_options"]["deepcache"]
    _around(changed, lambda run: (run(), kept.append(len(applied._last._slots)))[0])
    sample(changed, cfg=1.0, steps=6)
    assert max(kept) <= 2


def test_patches_that_count_blocks_make_shallow_steps_full():
    """As those of SUPIR do, which begin to count after the middle block."""
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
    # At the deepest branch the feature is what the last layer of the middle block returns, which no hook sees.
    assert pattern(changed) == ("FFF" if branch == max(BRANCHES) else "F..")


def test_the_model_gets_the_options_that_it_gets_without_deepcache():
    """ComfyUI's node for `torch.compile` runs graphs without comparing the options with those they were made for."""
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
def test_a_batch_that_is_run_part_by_part(settings):
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
def test_the_guidance_scale_of_a_guider_with_two(scales, forecast):
    changed = with_deepcache(model(), preset="balanced")
    applied = changed.model_options["transformer_options"]["deepcache"]
    guider = SimpleNamespace(model_patcher=changed, model_options=changed.model_options, **scales)
    assert applied.begin_run(guider, None, torch.zeros(11))._config.forecast == forecast


def test_a_sampler_of_one_evaluation_that_is_called_after_heun():
    changed = with_deepcache(model(), adaptive_threshold=0.1, interval=4, forecast="linear")
    assert sample(changed, sampler="dpmpp_2m_sde_heun", steps=12).isfinite().all()


def test_from_one_part_of_the_run_to_another():
    changed = with_deepcache(model(), start_percent=0.25, end_percent=0.75)
    sample(changed, steps=10)
    # Noise levels from 10 to 1, of which those above 7.5 and up to 2.5 are outside.
    assert pattern(changed) == "FFFF..F.FF"
    assert "outside start_percent to end_percent: step 0, 1, 2, 8, 9" in report(changed)


def test_the_noise_level_is_not_read_without_limits(monkeypatch):
    readers, read = [], torch.Tensor.__float__
    monkeypatch.setattr(
        torch.Tensor, "__float__", lambda tensor: readers.append(sys._getframe(1).f_globals["__name__"]) or read(tensor)
    )
    sample(with_deepcache(model()))
    assert readers
    assert not any(reader.startswith("DeepCache.") for reader in readers)
    sample(with_deepcache(model(), end_percent=0.9))
    assert "DeepCache.comfyui.sampler" in readers


def test_a_plan_says_what_each_step_does(tmp_path):
    path = tmp_path / "plan.json"
    steps = [Step(True), Step(False, 2), Step(False, forecast="linear", skipped=True), Step(True)]
    Plan(StepSchedule(tuple(steps)), {}, {}, guidance=(4.0, 4.0)).to_file(path)
    changed = with_deepcache(model(), plan=str(path))
    sample(changed, steps=4)
    assert pattern(changed) == "F.-F"
    with pytest.raises(ValueError, match="the plan is for 4 steps, and the sampler runs 5"):
        sample(changed, steps=5)
    with pytest.raises(ValueError, match=r"the guidance scale is 7\.5 and not 4"):
        sample(changed, steps=4, cfg=7.5)
    with pytest.raises(ValueError, match="needs a sampler with one evaluation per step, and heun has several"):
        sample(changed, steps=4, sampler="heun")


def test_an_adaptive_schedule_decides_by_the_error_of_its_forecasts():
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


def test_channels_of_an_image_to_start_from_are_not_forecast():
    patcher = model(taken=9)
    patcher.model_options["concat"] = torch.ones(1, 5, 8, 8)
    changed = with_deepcache(patcher, between="skipped", forecast="response")
    assert sample(changed).isfinite().all()
    assert pattern(changed) == "F--F--F--F"


class TestRuns:
    def test_nothing_of_one_run_reaches_the_next(self):
        changed = with_deepcache(model(), forecast="linear")
        first = sample(changed)
        sample(changed, seed=7, steps=5)
        assert torch.equal(sample(changed), first)

    def test_after_an_error_too(self):
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

    def test_two_threads_with_one_model_have_a_run_each(self):
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

    def test_a_clone_made_after_the_node_has_deepcache_too(self):
        changed = with_deepcache(model())
        clone = _with(changed, ("patches", "input_block_patch", [lambda h, options: h]))
        assert torch.equal(sample(clone), sample(changed))
        assert pattern(clone) == "F..F..F..F"

    def test_a_clone_that_copies_all_of_its_options_shares_the_report(self):
        changed = with_deepcache(model())
        sample(changed)
        clone = changed.clone()
        clone.model_options = copy.deepcopy(changed.model_options)
        assert report(clone) == report(changed)
        sample(clone, steps=4)
        assert pattern(changed) == "F..F"

    def test_an_interrupted_run_keeps_no_tensor(self):
        changed = with_deepcache(model(), forecast="linear", interval=1)
        stopped = _stops(changed, 3)
        with pytest.raises(KeyboardInterrupt):
            sample(changed)
        stopped.remove()
        applied = changed.model_options["transformer_options"]["deepcache"]
        (executor,) = applied._executors._executors.values()
        assert not executor.take()

    def test_calls_of_one_evaluation_in_several_threads(self):
        """As on several devices, each of which has a copy of the model."""
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

    def test_two_nodes_are_the_last_one(self):
        patcher = model()
        twice = with_deepcache(with_deepcache(patcher, interval=5), interval=2)
        assert torch.equal(sample(twice), sample(with_deepcache(patcher, interval=2)))

    def test_another_wrapper_around_it_stays(self):
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

    def test_blocks_that_are_replaced_between_two_steps(self):
        patcher = model()
        changed = with_deepcache(patcher, interval=2)
        unet = patcher.model.diffusion_model

        def replace(module, args):
            unet.output_blocks[5] = type(unet.output_blocks[5])(*unet.output_blocks[5])

        handle = unet.register_forward_pre_hook(replace)
        assert torch.equal(sample(changed), sample(with_deepcache(model(), interval=2)))
        handle.remove()


def test_compiled_there_is_a_graph_for_each_kind_of_step():
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
    def test_a_model_without_long_skips(self):
        patcher = model()
        patcher.model.diffusion_model = torch.nn.Sequential()
        with pytest.raises(TypeError, match=r"needs a U-Net .* this model is a Sequential; EasyCache"):
            with_deepcache(patcher)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"branch": 6}, "branch must be from 0 to 5 for this model, got 6"),
            ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent must be below end_percent, got 0.5 and 0.5"),
            ({"forecast": "response"}, "forecast='response' is for skipped steps"),
            ({"guidance_reuse": True, "between": "skipped"}, "guidance_reuse halves shallow steps"),
        ],
        ids=str,
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            with_deepcache(model(), **settings)

    def test_a_plan_that_is_none(self, tmp_path):
        with pytest.raises(OSError, match=r"plan\.json"):
            with_deepcache(model(), plan=str(tmp_path / "plan.json"))

    def test_a_report_before_the_first_run(self):
        assert report(with_deepcache(model())) == "no run yet"


def test_a_report_without_deepcache():
    assert report(model()).startswith("DeepCache is not on this model")


def test_presets_ignore_the_custom_inputs():
    # Both would be refused with `custom`.
    with_deepcache(model(), preset="balanced", branch=99, forecast="response")


def test_the_report():
    changed = with_deepcache(model())
    sample(changed)
    first, second = report(changed).splitlines()
    assert first == "F..F..F..F"
    assert second.startswith("4 full and 6 shallow steps, ")
    # Counted by hand in tests of the engine.
    share = float(second.rsplit(": ")[-1].rstrip("%")) / 100
    assert 0.4 < share < 1


def test_the_report_in_the_docs():
    changed = with_deepcache(model(), preset="balanced")
    sample(changed, cfg=7.5, steps=20, size=(64, 64))
    page = (Path(__file__).parents[2] / "docs" / "comfyui.md").read_text(encoding="utf-8")
    assert f"```text\n{report(changed)}\n```" in page


def _window(name: str, frames: tuple[int, int]) -> Any:
    return SimpleNamespace(index_list=list(frames)) if name == "context_window" else {"sub_idxs": list(frames)}


def _around(patcher: Any, function: Any) -> None:
    """Has a function run each call of the model with DeepCache."""

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return function(lambda: executor(*args, **kwargs))

    _outermost(patcher, wrapper)


def _calls(patcher: Any, change: Any) -> None:
    """Changes the options of each call of the model before DeepCache sees them; its number is given."""
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
    """A wrapper that notes how many rows the calls have that reach it."""

    def wrapper(executor: Any, x: Any, *args: Any) -> Any:
        rows.append(len(x))
        return executor(x, *args)

    return wrapper


def _stops(patcher: Any, at: int) -> Any:
    """Interrupts the model at its call number `at` of its last block."""
    layer, count = patcher.model.diffusion_model.output_blocks[5][0], itertools.count(1)

    def interrupt(module: Any, args: Any) -> None:
        if next(count) == at:
            raise KeyboardInterrupt

    return layer.register_forward_pre_hook(interrupt)
