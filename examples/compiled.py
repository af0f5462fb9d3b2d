"""Compiled full and shallow steps: `torch.compile` put on the U-Net by DeepCache.

    python examples/compiled.py          # takes a GPU, and downloads the model
    python examples/compiled.py --tiny   # on a CPU, offline, with the model that comes with DeepCache

`compile="default"` gives full steps one graph and shallow steps another, and takes from half a minute to several. A
warm-up of two steps, the first full and the second shallow, has both compiled before the first picture that counts; it
wants the size and the batch of the pictures to come. Do not call `torch.compile(pipe.unet)` as well: on a U-Net that is
compiled already, `compile=` is refused. `--tiny` compiles the transformer blocks alone, `compile="regional"`, which
takes half a minute or more, and a C++ compiler.
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


def draw(pipe: StableDiffusionPipeline, prompt: str, mode: str) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0, compile=mode))
    start = time.perf_counter()
    pipe(prompt, num_inference_steps=2)
    warm = time.perf_counter()
    image = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    print(f"warm-up {warm - start:.1f} s, picture {time.perf_counter() - warm:.1f} s")
    print(engine.stats)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="draw with the model that comes with DeepCache")
    parser.add_argument("--output", default="compiled.png", help="the picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        image = draw(tiny_models.stable_diffusion(), tiny_models.PROMPT, mode="regional")
    else:
        image = draw(load(), "a photo of an astronaut on a moon", mode="default")
    image.save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
