"""Cost and fidelity in ComfyUI's own engine: the DeepCache node, ComfyUI's EasyCache and LazyCache, and fewer steps.

The small model of the package and held-out prompts, at two guidance scales and with three samplers of 25 evaluations
of the U-Net. PSNR is taken image by image against the run without any of them. EasyCache and LazyCache, which decide by
the images, run one prompt at a time, all others in one batch. `COMFYUI_PATH` names a checkout of ComfyUI. The result
file is written after every case, and a run that was stopped resumes from there.

    COMFYUI_PATH=../ComfyUI python -m benchmarks.comfyui
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.comfyui_engine import engine
from benchmarks.comfyui_engine.bundled_model import load
from benchmarks.comfyui_engine.nodes import with_deepcache
from benchmarks.fidelity import resumed
from benchmarks.frontier import IDENTICAL
from DeepCache.bench.result_file import write_result
from DeepCache.bench.summary import summary
from DeepCache.comfyui.wrappers import KEY
from DeepCache.config import PRESETS
from DeepCache.metrics import psnr

# `engine` makes these importable.
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode  # isort: skip
from comfyui_version import __version__ as comfyui_version  # isort: skip

GUIDANCES = (2.0, 7.5)
# Their noise levels, the steps, and the evaluations that these take.
SAMPLERS = {"euler": ("normal", 25, 25), "dpmpp_2m": ("karras", 25, 25), "heun": ("karras", 13, 25)}
THRESHOLDS = (0.05, 0.1, 0.2, 0.4)
FEWER = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2)
CUSTOM = {
    "re-use": ({"forecast": "none"}, (2, 3, 5)),
    "limited": ({"forecast": "limited"}, (2, 3, 5)),
    "skipped, limited": ({"between": "skipped", "forecast": "limited"}, (2, 3, 5)),
    "skipped, response": ({"between": "skipped", "forecast": "response"}, (2, 3, 5)),
    "limited, guidance reuse": ({"forecast": "limited", "guidance_reuse": True}, (3, 5)),
}


@dataclass(frozen=True)
class Case:
    """One way to sample: what it belongs to, its setting, the model, and the number of steps."""

    method: str
    label: str
    model: Any
    steps: int
    one_by_one: bool = False


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    prompts = options.prompts.read_text(encoding="utf-8").splitlines()[: options.count]
    settings = {
        "comfyui": comfyui_version,
        "model": "shapes",
        "samplers": {name: {"scheduler": levels, "steps": steps} for name, (levels, steps, _) in SAMPLERS.items()},
        "guidance": list(GUIDANCES),
        "prompts": prompts,
        "threads": options.threads,
    }
    result = resumed(options.output, settings, options.seed, {"cases": []})
    engine = _Engine(prompts, options.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, speed_estimate_period=3600) as progress:
        for guidance in GUIDANCES:
            for sampler, (_, steps, evaluations) in SAMPLERS.items():
                where = {"guidance": guidance, "sampler": sampler}
                done = {
                    (case["method"], case["label"])
                    for case in result["cases"]
                    if all(case[name] == value for name, value in where.items())
                }
                missing = [case for case in _cases(engine.model, steps) if (case.method, case.label) not in done]
                if not missing:
                    continue
                task = progress.add_task(f"{sampler}, {guidance:g}", total=len(missing))
                reference, whole = engine.sample(engine.model, sampler, steps, guidance)
                if whole != evaluations:
                    raise RuntimeError(f"{sampler} evaluated the model {whole} times, expected {evaluations}")
                for case in missing:
                    images, calls = engine.sample(case.model, sampler, case.steps, guidance, case.one_by_one)
                    found = psnr(images, reference).clamp_max(IDENTICAL).tolist()
                    values = {
                        "mac_share": calls / whole if engine.share is None else engine.share,
                        "pattern": engine.pattern,
                        "psnr": summary(found),
                    }
                    result["cases"].append(where | {"method": case.method, "label": case.label} | values)
                    write_result(options.output, result)
                    progress.advance(task)
    print(options.output)


def _cases(model: Any, steps: int) -> list[Case]:
    cases = [Case("preset", name, with_deepcache(model, preset=name), steps) for name in PRESETS]
    for method, (settings, intervals) in CUSTOM.items():
        for interval in intervals:
            cases.append(Case(method, f"I={interval}", with_deepcache(model, interval=interval, **settings), steps))
    nodes: dict[str, Callable[..., Any]] = {"EasyCache": EasyCacheNode.execute, "LazyCache": LazyCacheNode.execute}
    for name, execute in nodes.items():
        for threshold in THRESHOLDS:
            # The part of the run and the silence are the nodes' defaults.
            (changed,) = execute(model, threshold, 0.15, 0.95, False).args
            cases.append(Case(name, f"threshold {threshold:g}", changed, steps, one_by_one=True))
    for share in FEWER:
        fewer = round(share * steps)
        cases.append(Case("fewer steps", f"{fewer} steps", model, fewer))
    return cases


@dataclass
class _Engine:
    """Samples every prompt, each from its own noise, which is the same every time."""

    prompts: list[str]
    seed: int
    share: float | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        self.model, encoder, self.autoencoder = load()
        encoded = [encoder.encode_from_tokens_scheduled(encoder.tokenize(prompt)) for prompt in self.prompts]
        self.positive = torch.cat([positive[0][0] for positive in encoded])
        self.negative = encoder.encode_from_tokens_scheduled(encoder.tokenize(""))
        generators = [torch.Generator().manual_seed(self.seed + number) for number in range(len(self.prompts))]
        self.noise = torch.stack([torch.randn(4, 16, 16, generator=generator) for generator in generators])
        self.rows = 0
        # Runs in every evaluation that reaches the layers of the U-Net, with a row for each prompt.
        self.model.model.diffusion_model.middle_block[0].register_forward_hook(self._count)

    def _count(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.rows += len(output)

    def sample(
        self, model: Any, sampler: str, steps: int, guidance: float, one_by_one: bool = False
    ) -> tuple[torch.Tensor, float]:
        """The images, (N, 3, H, W) in 0..1, and the evaluations of the U-Net for an image.

        With DeepCache on the model, its share of the work is in `share`.
        """
        self.rows, self.share, self.pattern = 0, None, None
        count, levels = len(self.prompts), SAMPLERS[sampler][0]
        runs = [slice(number, number + 1) for number in range(count)] if one_by_one else [slice(0, count)]
        latents = []
        for run in runs:
            noise, positive = self.noise[run], [[self.positive[run], {}]]
            settings = (steps, guidance, sampler, levels, positive, self.negative, torch.zeros_like(noise))
            latents.append(engine.comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=self.seed))
        deepcache = model.model_options.get("transformer_options", {}).get(KEY)
        if deepcache is not None:
            stats = deepcache.stats
            if stats.mac_share is None:
                raise RuntimeError(f"multiply-accumulates cannot be counted: {stats.uncounted}")
            self.share, self.pattern = stats.mac_share, stats.pattern
        images = self.autoencoder.decode(torch.cat(latents)).movedim(-1, 1)
        return images, self.rows / 2 / count


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/comfyui.json.gz"))
    parser.add_argument("--prompts", type=Path, default=Path("training/held_out.txt"), help="one prompt a line")
    parser.add_argument("--count", type=int, default=24, help="how many prompts, from the first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
