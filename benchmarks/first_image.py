"""Processor time to the first image of `deepcache generate`, and what of it the libraries below take.

Each case is a process of its own on one thread; in each round all run in turn. Processor time, since that of a shared
machine's clock depends on who else uses it.

- `torch`: `import torch`
- `diffusers`: the classes of the bundled pipeline, imported from diffusers and transformers
- `pipeline`: the pipeline loaded by diffusers alone and run
- `deepcache generate`: the command, with as many steps
- `deepcache --help`, and a wrong option: what needs none of the libraries

    python -m benchmarks.first_image
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.models import MODELS

STEPS = 10
CLASSES = "from diffusers import StableDiffusionPipeline; from transformers import CLIPTextModel, CLIPTokenizer"
LOADED = (
    f"from diffusers import DiffusionPipeline; p = DiffusionPipeline.from_pretrained({str(MODELS['shapes'].folder)!r})"
)
GENERATE = ("-m", "DeepCache", "generate", "a red circle", "--steps", str(STEPS))
CASES = {
    "torch": ("-c", "import torch"),
    "diffusers": ("-c", f"import torch; {CLASSES}"),
    "pipeline": ("-c", f"{LOADED}; p('a red circle', num_inference_steps={STEPS}).images[0].save('image.png')"),
    "deepcache generate": GENERATE,
    "deepcache --help": ("-m", "DeepCache", "--help"),
    "a wrong option": (*GENERATE, "--interval", "0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/first_image.json"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    with TemporaryDirectory() as folder:
        for number in range(-1, options.rounds):
            for name, arguments in CASES.items():
                taken = _processor_seconds(arguments, folder)
                # The first round reads files that later ones find in memory.
                if number >= 0:
                    seconds[name].append(taken)
    result = provenance(seed=0) | {
        "steps": STEPS,
        "threads": 1,
        "seconds": seconds,
        "median": {name: round(median(values), 3) for name, values in seconds.items()},
    }
    write_result(options.output, result)
    for name, value in result["median"].items():
        print(f"{name}: {value:.2f} s")


def _processor_seconds(arguments: tuple[str, ...], folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
