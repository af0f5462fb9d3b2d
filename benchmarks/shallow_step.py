"""Where a shallow step at branch 0 spends its time, and what could reduce it.

Time: Stable Diffusion 1.5's U-Net with random weights, 512 px, batch 2 (guidance), bfloat16, one thread. In every round
each memory format runs a full step, and then all variants of the shallow step run in turn.
Fidelity: the bundled model generates held-out prompts with each variant; PSNR is measured image by image against no
caching, and every variant is compared with the settings of DeepCache at the same cost.

A variant reuses or linearly forecasts parts of the shallow step from full steps, like the deep feature.
`transformer` is the residual that the transformer block adds, `convolution` the part of the first convolutions of the
ResNet that depends on the deep feature, `prediction` the output of the U-Net, so that no layer runs.

    python -m benchmarks.shallow_step

An interrupted run resumes. With --time-again only the times are measured again.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fidelity import resumed
from benchmarks.harness.denoising_run import BarePipe, ddim
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.bench.summary import confidence, summary
from DeepCache.engine.cost import count_costs
from DeepCache.engine.forecast import Forecast
from DeepCache.engine.layouts import skip_branches
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.metrics import psnr
from DeepCache.models import ARCHITECTURES, load_pipeline, recommended_guidance, set_scheduler
from DeepCache.schedule import Step, StepSchedule

SD15 = ARCHITECTURES["sd15"].networks["unet"].config
TOKENS = 77
SCHEDULERS = {"ddim": 50, "dpm++": 25}
INTERVALS = (3, 4, 5)
# Intervals of the settings that each variant is compared with.
NEIGHBOURS = (3, 4, 5, 6, 8)
FORMATS = ("plain", "channels_last", "fused projections", "channels_last, fused projections")
# The first pattern that matches the name of a module; everything else is `other`.
KINDS = {
    "self-attention, projections": r"attn1\.to_(q|k|v|out)$",
    "self-attention, products": r"attn1$",
    "cross-attention, projections": r"attn2\.to_(q|k|v|out)$",
    "cross-attention, products": r"attn2$",
    "feed-forward": r"\.ff$",
    "transformer, projections in and out": r"\.proj_(in|out)$",
    "ResNet, convolutions": r"resnets\.\d+\.conv(1|2|_shortcut)$",
    "conv_in and conv_out": r"^conv_(in|out)$",
    "norms": r"norm(\d|_out)?$",
    "time embedding": r"time_(embedding|emb_proj)$",
    "other": r"^$",
}


@dataclass(frozen=True)
class Variant:
    """A way to run the shallow step: with some parts forecast instead of run, with or without guidance reuse."""

    parts: tuple[str, ...] = ()
    forecast: str = "linear"
    guidance_reuse: bool = False

    @property
    def name(self) -> str:
        words = ["guidance reuse"] * self.guidance_reuse
        if self.parts:
            words.append(f"{' + '.join(self.parts)} {'re-used' if self.forecast == 'none' else 'forecast'}")
        return ", ".join(words) or "plain"


PLAIN, GUIDANCE = Variant(), Variant(guidance_reuse=True)
PARTS = ("self-attention", "cross-attention", "transformer", "convolution", "prediction")
SELF, CROSS, TRANSFORMER, CONVOLUTION, PREDICTION = ((part,) for part in PARTS)
BOTH = SELF + CROSS
RE_USED = Variant(SELF, "none")
TIMED = (
    PLAIN,
    RE_USED,
    *map(Variant, (SELF, CROSS, BOTH, TRANSFORMER, CONVOLUTION)),
    *(Variant(parts, guidance_reuse=True) for parts in ((), SELF, TRANSFORMER)),
)


class Parts:
    """Parts of the shallow step of a U-Net, forecast from full steps as the current variant requires.

    Args:
        unet: a U-Net with cross-attention in its last up block.
        steps: DeepCache's steps in a denoising run.
        names: the parts cached on full steps.

    Attributes:
        variant: the variant of the next shallow steps.
        number: index of the step.
    """

    def __init__(self, unet: nn.Module, steps: Sequence[Step], names: Sequence[str]) -> None:
        self.variant = PLAIN
        self.number = -1
        self._steps = steps
        self._handle = unet.register_forward_pre_hook(self._next)
        layers = unet.up_blocks[-1]
        block, resnet = layers.attentions[-1].transformer_blocks[0], layers.resnets[-1]
        deep = resnet.in_channels - unet.conv_in.out_channels
        whole: tuple[Callable, Callable] = lambda output, *_: output, lambda kept, *_: kept
        known = {
            "self-attention": [(block.attn1, *whole)],
            "cross-attention": [(block.attn2, *whole)],
            "transformer": [(block, lambda output, x: output - x, lambda kept, x: kept + x)],
            "convolution": [(conv, *_split(conv, deep)) for conv in (resnet.conv1, resnet.conv_shortcut)],
            "prediction": [(unet.conv_out, *whole)],
        }
        self._modules = [_Continued(self, name, *each) for name in names for each in known[name]]

    @property
    def step(self) -> Step:
        """The current step."""
        return self._steps[self.number]

    def remove(self) -> None:
        """Restores the U-Net."""
        self._handle.remove()
        for each in self._modules:
            del each.module.forward

    def _next(self, *_: Any) -> None:
        self.number = (self.number + 1) % len(self._steps)


class _Continued:
    """Replaces the `forward` of a module. A full step caches a part of its output; a shallow step may combine the
    forecast of that part with the rest of the computation."""

    def __init__(self, parts: Parts, name: str, module: nn.Module, part: Callable, join: Callable) -> None:
        self.module = module
        self._parts, self._name, self._part, self._join = parts, name, part, join
        self._run = module.forward
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        number, step, variant = self._parts.number, self._parts.step, self._parts.variant
        if self._name in variant.parts and not step.full:
            half = 1 if step.guidance_reuse else None
            return self._join(self._kept.at(number, variant.forecast, half), *args)
        output = self._run(*args, **kwargs)
        if number == 0:
            self._kept = Forecast(order=1)
        if step.full:
            self._kept.add(number, self._part(output, *args))
        return output


def _split(conv: nn.Conv2d, deep: int) -> tuple[Callable, Callable]:
    """The part of a convolution that depends on the deep feature, and its sum with the part of the skip connection."""
    padding = conv.padding
    return (
        lambda _, x: conv2d(x[:, :deep], conv.weight[:, :deep], padding=padding),
        lambda kept, x: kept + conv2d(x[:, deep:], conv.weight[:, deep:], conv.bias, padding=padding),
    )


class Trajectory:
    """Consecutive U-Net calls with DeepCache and parts of its shallow step.

    Args:
        unet: the U-Net.
        steps: the steps.
        side: height and width of the latents.
        names: the parts cached on full steps.
    """

    def __init__(self, unet: nn.Module, steps: Sequence[Step], side: int, names: Sequence[str] = ()) -> None:
        self._pipe = BarePipe(unet, ddim(len(steps)))
        self._inputs = inputs(unet, side)
        apply_deepcache(self._pipe, DeepCacheConfig(schedule=StepSchedule(steps)))
        self._parts = Parts(unet, steps, names)

    @torch.no_grad()
    def step(self, variant: Variant = PLAIN) -> float:
        """Runs the next step and returns its seconds."""
        self._parts.variant = variant
        timestep = self._pipe.scheduler.timesteps[self._parts.number + 1]
        sample, text = self._inputs
        start = perf_counter()
        self._pipe.unet(sample, timestep, text)
        return perf_counter() - start

    def end(self) -> None:
        """Restores the U-Net."""
        self._parts.remove()
        remove_deepcache(self._pipe)


def profile(unet: nn.Module, side: int, read: Callable[[], float], count: int) -> list[dict[str, float]]:
    """The time of each kind of module in each shallow step, by the difference of two readings."""
    trajectory = Trajectory(unet, [Step(True), *[Step(False)] * count], side)
    trajectory.step()
    spent = []
    for _ in range(count):
        with _metered(unet, read) as kinds:
            trajectory.step()
        spent.append(dict(kinds))
    trajectory.end()
    return spent


@contextmanager
def _metered(unet: nn.Module, read: Callable[[], float]) -> Iterator[Counter[str]]:
    """Measures modules by kind, without their submodules."""
    spent: Counter[str] = Counter()
    inside: list[str] = []
    last = 0.0

    def charge() -> None:
        nonlocal last
        now = read()
        if inside:
            spent[inside[-1]] += now - last
        last = now

    def begin(kind: str) -> None:
        charge()
        inside.append(kind)

    def end() -> None:
        charge()
        inside.pop()

    handles = []
    for name, module in unet.named_modules():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), None)
        if kind is not None:
            handles.append(module.register_forward_pre_hook(lambda *_, kind=kind: begin(kind), prepend=True))
            handles.append(module.register_forward_hook(lambda *_: end()))
    yield spent
    for handle in handles:
        handle.remove()


def multiply_accumulates(config: Any, side: int) -> dict[str, float]:
    """The multiply-accumulates of each variant of the shallow step, as shares of a full step's."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    sample, text = inputs(unet, side)
    full = count_costs(unet, (sample, 0, text), {}, skip_branches(unet)[:1]).full
    trajectory = Trajectory(unet, [Step(True), *[Step(False)] * len(TIMED)], side, PARTS)
    trajectory.step()
    shares = {Variant(PREDICTION).name: 0.0}
    for variant in TIMED:
        with FlopCounterMode(display=False) as counter:
            trajectory.step(replace(variant, guidance_reuse=False))
        shares[variant.name] = counter.get_total_flops() / 2 / full / (1 + variant.guidance_reuse)
    trajectory.end()
    return shares


def formatted(unet: nn.Module) -> dict[str, nn.Module]:
    """A U-Net and copies of it in the other formats."""
    copies = {name: unet if name == "plain" else copy.deepcopy(unet) for name in FORMATS}
    for name, other in copies.items():
        if "channels_last" in name:
            other.to(memory_format=torch.channels_last)
        if "fused" in name:
            other.fuse_qkv_projections()
    return copies


@torch.no_grad()
def differences(unets: dict[str, nn.Module], side: int) -> dict[str, float]:
    """The largest difference of an output from that of the plain format, as a share of its largest value."""
    sample, text = inputs(unets["plain"], side)
    outputs = {name: unet(sample, 500, text).sample for name, unet in unets.items()}
    plain = outputs["plain"]
    return {name: float((output - plain).abs().max() / plain.abs().max()) for name, output in outputs.items()}


def race(unets: dict[str, nn.Module], side: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds of a full step of each format and of shallow steps of each variant, round by round."""
    # The first round warms up, and has no second full step to forecast from.
    turns = [_rotated(TIMED, number) * repeats for number in range(rounds + 1)]
    steps = [
        step
        for turn in turns
        for step in (Step(True), *(Step(False, 0, "linear", variant.guidance_reuse) for variant in turn))
    ]
    runs = {name: Trajectory(unet, steps, side, PARTS) for name, unet in unets.items()}
    measured = []
    for number, turn in enumerate(track(turns, "rounds")):
        order = _rotated(FORMATS, number)
        full = {name: runs[name].step() for name in order}
        shallow: dict[str, Any] = {variant.name: {name: [] for name in FORMATS} for variant in TIMED}
        for variant in turn:
            for name in order:
                shallow[variant.name][name].append(runs[name].step(variant))
        measured.append({"full": full, "shallow": shallow})
    for run in runs.values():
        run.end()
    return measured[1:]


def timing(name: str, variant: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a variant in a format, their ratios to the plain format in the same round, and the resulting speed-ups
    of the U-Net by interval."""
    mine = [seconds["shallow"][variant][name] for seconds in rounds]
    plain = [seconds["shallow"]["plain"]["plain"] for seconds in rounds]
    full = [seconds["full"]["plain"] for seconds in rounds]
    own = median(seconds["full"][name] / whole for seconds, whole in zip(rounds, full, strict=True))
    share = median(median(times) / whole for times, whole in zip(mine, full, strict=True))
    return {
        "format": name,
        "variant": variant,
        "full_ms": 1000 * median(seconds["full"][name] for seconds in rounds),
        "shallow_ms": 1000 * median(map(median, mine)),
        "full_to_plain_full": own,
        "shallow_to_plain_shallow": median(
            one / other for pair in zip(mine, plain, strict=True) for one, other in zip(*pair, strict=True)
        ),
        "shallow_to_plain_full": share,
        "speed_up": {f"I={interval}": interval / (own + (interval - 1) * share) for interval in INTERVALS},
    }


def cells() -> Iterator[tuple[int, str, Variant]]:
    """The interval, forecast of the deep feature and variant of every cell."""
    for interval in NEIGHBOURS:
        yield from ((interval, "linear", variant) for variant in (PLAIN, GUIDANCE, Variant(PREDICTION)))
    for interval in INTERVALS:
        yield from ((interval, "linear", Variant(parts)) for parts in (SELF, CROSS, BOTH, TRANSFORMER, CONVOLUTION))
        yield from ((interval, "linear", Variant(parts, guidance_reuse=True)) for parts in (SELF, TRANSFORMER))
    for interval in (3, 5):
        yield from ((interval, *each) for each in (("none", PLAIN), ("none", RE_USED), ("linear", RE_USED)))


def generated(sampler: BatchSampler, interval: int, forecast: str, variant: Variant) -> tuple[Tensor, int]:
    """The images of a cell, and how many steps were full."""
    pipe = sampler.pipe
    config = DeepCacheConfig(interval, forecast=forecast, guidance_reuse=variant.guidance_reuse)
    steps = config.steps(sampler.steps)
    apply_deepcache(pipe, config)
    parts = Parts(pipe.unet, steps, variant.parts)
    parts.variant = variant
    images = sampler.sample()
    parts.remove()
    remove_deepcache(pipe)
    return images, sum(step.full for step in steps)


def gain(cell: dict[str, Any], rivals: list[dict[str, Any]], axis: str) -> dict[str, Any] | None:
    """The PSNR of a cell above the front of its rivals at the same cost, on the line between
    the two around it; None where there are no two."""
    front: list[dict[str, Any]] = []
    for rival in sorted(rivals, key=lambda each: (each[axis], -each["psnr"]["mean"])):
        if not front or rival["psnr"]["mean"] > front[-1]["psnr"]["mean"]:
            front.append(rival)
    for below, above in zip(front, front[1:], strict=False):
        if below[axis] <= cell[axis] <= above[axis]:
            weight = (cell[axis] - below[axis]) / (above[axis] - below[axis])
            triples = zip(*(each["psnr"]["values"] for each in (cell, below, above)), strict=True)
            gains = [own - (1 - weight) * low - weight * high for own, low, high in triples]
            return {"mean": fmean(gains), "confidence": confidence(gains)}
    return None


def compare(result: dict[str, Any]) -> None:
    """Adds to every cell what it costs, and its gain over the settings that DeepCache has, alone and together with
    forecasts of the prediction."""
    prediction = Variant(PREDICTION).name
    times = {row["variant"]: row["shallow_to_plain_full"] for row in result["timings"] if row["format"] == "plain"}
    # No layer runs, and one small tensor is forecast.
    costs = {"sd15_time_share": times | {prediction: 0.0}}
    costs |= {f"{name}_mac_share": shares for name, shares in result["multiply_accumulates"].items()}
    for cell in result["cells"]:
        full = cell["full_steps"] / SCHEDULERS[cell["scheduler"]]
        for axis, cost in costs.items():
            cell[axis] = full + (1 - full) * cost[cell["variant"]]
    for cell in result["cells"]:
        rivals = [other for other in result["cells"] if other["scheduler"] == cell["scheduler"]]
        settings = [other for other in rivals if other["variant"] in (PLAIN.name, GUIDANCE.name)]
        wider = settings + [other for other in rivals if other["variant"] == prediction]
        for axis in ("sd15_time_share", "sd15_mac_share"):
            cell[f"gain_at_{axis}"] = gain(cell, settings, axis)
            cell[f"gain_with_prediction_at_{axis}"] = gain(cell, wider, axis)


def inputs(unet: nn.Module, side: int) -> tuple[Tensor, Tensor]:
    """Latents with guidance, and texts."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, side, side, generator=generator).repeat(2, 1, 1, 1)
    text = torch.randn(2, TOKENS, unet.config.cross_attention_dim, generator=generator)
    return latents.to(unet.device, unet.dtype), text.to(unet.device, unet.dtype)


def _rotated(items: Sequence[Any], by: int) -> list[Any]:
    by %= len(items)
    return [*items[by:], *items[:by]]


def main() -> None:
    options = _options()
    diffusers.utils.logging.set_verbosity_error()
    settings = {
        "branch": 0,
        "pixels": options.pixels,
        "dtype": "bfloat16",
        "threads": 1,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "prompts": options.prompts.read_text(encoding="utf-8").splitlines()[: options.count],
        "schedulers": SCHEDULERS,
    }
    measured = ("profile", "multiply_accumulates", "differences", "seconds", "timings")
    result = resumed(options.output, settings, options.seed, dict.fromkeys(measured) | {"cells": []})
    if result["seconds"] is None or options.time_again:
        result |= provenance(options.seed)
        measure_time(result)
        write_result(options.output, result)
    torch.set_num_threads(options.image_threads)
    for cell in measure_fidelity(result):
        result["cells"].append(cell)
        write_result(options.output, result)
    compare(result)
    write_result(options.output, result)
    report(result)


def measure_time(result: dict[str, Any]) -> None:
    """Adds all that is known of the U-Nets by themselves."""
    torch.set_num_threads(result["threads"])
    torch.manual_seed(result["seed"])
    side = result["pixels"] // 8
    shapes = load_pipeline("shapes", dtype="float32", device="cpu").unet
    with torch.device("meta"):
        meta = UNet2DConditionModel(**SD15)
    with FlopCounterMode(display=False) as counter:
        (counted,) = profile(meta, side, lambda: counter.get_total_flops() / 2, 1)
    unets = formatted(UNet2DConditionModel(**SD15).eval().requires_grad_(False).to(torch.bfloat16))
    result["profile"] = {"multiply_accumulates": counted, "seconds": profile(unets["plain"], side, perf_counter, 8)}
    result["multiply_accumulates"] = {
        "sd15": multiply_accumulates(SD15, side),
        "shapes": multiply_accumulates(shapes.config, shapes.config.sample_size),
    }
    result["differences"] = {
        "sd15, bfloat16": differences(unets, side),
        "shapes, float32": differences(formatted(shapes), shapes.config.sample_size),
    }
    rounds = result["seconds"] = race(unets, side, result["rounds"], result["repeats"])
    result["timings"] = [timing(name, variant.name, rounds) for variant in TIMED for name in FORMATS]


def measure_fidelity(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells that the result does not have yet."""
    pipe = load_pipeline("shapes", dtype="float32", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    guidance, prompts = recommended_guidance("shapes", pipe), result["prompts"]
    key = ("scheduler", "interval", "forecast", "variant")
    done = {tuple(cell[name] for name in key) for cell in result["cells"]}
    for scheduler, steps in SCHEDULERS.items():
        missing = [cell for cell in cells() if (scheduler, *cell[:2], cell[2].name) not in done]
        if not missing:
            continue
        set_scheduler(pipe, scheduler)
        sampler = BatchSampler(pipe, prompts, steps, guidance, result["seed"], len(prompts))
        reference = sampler.sample()
        for interval, forecast, variant in track(missing, scheduler):
            images, full = generated(sampler, interval, forecast, variant)
            cell = dict(zip(key, (scheduler, interval, forecast, variant.name), strict=True))
            yield cell | {"full_steps": full, "psnr": summary(psnr(images, reference).tolist())}


def report(result: dict[str, Any]) -> None:
    """Prints the tables."""
    counted, times = result["profile"]["multiply_accumulates"], result["profile"]["seconds"]
    medians = {kind: median(each.get(kind, 0.0) for each in times) for kind in KINDS}
    print("Shallow step at branch 0: time, multiply-accumulates")
    for kind, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        share = counted.get(kind, 0.0) / sum(counted.values())
        print(f"  {seconds / sum(medians.values()):6.1%} {share:6.1%}  {kind}")
    print("Largest difference of outputs")
    for name, found in result["differences"].items():
        print(f"  {name}: " + "; ".join(f"{name} {difference:.1e}" for name, difference in found.items()))
    print("Full step, shallow step: ms and ratio to plain; U-Net at " + ", ".join(f"I={each}" for each in INTERVALS))
    for row in result["timings"]:
        if "plain" in (row["variant"], row["format"]):
            print(
                f"  {row['full_ms']:6.0f} {row['full_to_plain_full']:5.3f}"
                f"  {row['shallow_ms']:6.1f} {row['shallow_to_plain_shallow']:5.3f}  "
                + " ".join(f"{speed_up:.2f}x" for speed_up in row["speed_up"].values())
                + f"  {row['variant']} ({row['format']})"
            )
    print("Share of time and MACs (SD 1.5), of MACs (shapes); PSNR; gain over the settings, and with the prediction's")
    for cell in sorted(result["cells"], key=lambda each: (each["scheduler"], -each["sd15_time_share"])):
        gains = [cell[f"{name}_at_sd15_time_share"] for name in ("gain", "gain_with_prediction")]
        print(
            f"  {cell['sd15_time_share']:5.1%} {cell['sd15_mac_share']:5.1%} {cell['shapes_mac_share']:5.1%}"
            f"  {cell['psnr']['mean']:5.2f} ± {cell['psnr']['confidence'][1] - cell['psnr']['mean']:4.2f}  "
            + " ".join(f"{each['mean']:+6.2f}" if each else "     –" for each in gains)
            + f"  {cell['scheduler']:5} I={cell['interval']}, deep feature {cell['forecast']}, {cell['variant']}"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/shallow_step.json.gz"))
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="shallow steps of each variant in a round")
    parser.add_argument("--prompts", type=Path, default=Path("training/held_out.txt"), help="one prompt a line")
    parser.add_argument("--count", type=int, default=32, help="how many prompts, from the first")
    parser.add_argument("--time-again", action="store_true", help="measure times again and keep the images")
    parser.add_argument("--image-threads", type=int, default=2, help="threads for what is not timed")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
