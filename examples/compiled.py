"""Compiled full and shallow steps: `torch.compile` applied to the U-Net by DeepCache.

    python examples/compiled.py          # needs a GPU and downloads the model
    python examples/compiled.py --tiny   # on a CPU, offline, with the bundled model

`compile="default"` compiles one graph for full and one for shallow steps, which takes from half a minute to several
minutes. A warm-up of two steps, the first full and the second shallow, compiles both; it must have the size and batch
of the images that follow. Do not call `torch.compile(pipe.unet)` as well: `compile=` raises an error for a compiled
U-Net. `--tiny` compiles the transformer blocks alone, `compile="regional"`, which takes half a minute or more and needs
a C++ compiler.
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from DeepCache import DeepCacheConfig, apply_deepcache


def load() -> StableDiffusionPipeline:
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return StableDiffusionPipeline.from_pretrained(name, dtype=torch.float16).to("cuda")


def generate(pipe: StableDiffusionPipeline, prompt: str, mode: str) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0, compile=mode))
    start = time.perf_counter()
    pipe(prompt, num_inference_steps=2)
    warm = time.perf_counter()
    image = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    print(f"warm-up {warm - start:.1f} s, image {time.perf_counter() - warm:.1f} s")
    print(engine.stats)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use the bundled model")
    parser.add_argument("--output", default="compiled.png", help="the image to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        image = generate(tiny_models.stable_diffusion(), tiny_models.PROMPT, mode="regional")
    else:
        image = generate(load(), "a photo of an astronaut on a moon", mode="default")
    image.save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
