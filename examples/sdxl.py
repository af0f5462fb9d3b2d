"""Stable Diffusion XL, with shallow steps that run half of the guided batch.

    python examples/sdxl.py          # needs a GPU and downloads the model
    python examples/sdxl.py --tiny   # on a CPU, offline, with random weights: it generates noise

Branches are numbered by the structure of the U-Net. SDXL has nine of them, Stable Diffusion 1.5 twelve:
`cache_branch_id` is between 0 and 8, and a number means another place than in 1.5. The script prints them; `deepcache
info sdxl` also shows the cost of a shallow step at each. With `guidance_reuse=True` a shallow step runs only the half
of the batch that has the prompt, which halves its cost.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.layouts import skip_branches


def load() -> StableDiffusionXLPipeline:
    name = "stabilityai/stable-diffusion-xl-base-1.0"
    return StableDiffusionXLPipeline.from_pretrained(name, dtype=torch.float16, variant="fp16").to("cuda")


def generate(pipe: StableDiffusionXLPipeline, prompt: str) -> Image.Image:
    print("branches:", ", ".join(f"{branch.number} {branch.name}" for branch in skip_branches(pipe.unet)))
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0, guidance_reuse=True))
    # Guidance reuse requires guidance: a guidance_scale of 1 or less raises an error.
    generator = torch.Generator().manual_seed(0)
    image = pipe(prompt, num_inference_steps=50, guidance_scale=5.0, generator=generator).images[0]
    print(engine.stats)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use a tiny SDXL with random weights")
    parser.add_argument("--output", default="sdxl.png", help="the image to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe = tiny_models.stable_diffusion_xl()
    else:
        pipe = load()
    generate(pipe, "a fox asleep in fresh snow, morning light").save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
