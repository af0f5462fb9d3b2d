"""Stable Diffusion XL, with shallow steps that run half of the guided batch.

    python examples/sdxl.py          # takes a GPU, and downloads the model
    python examples/sdxl.py --tiny   # at once on a CPU, offline, with random weights: it draws noise

Branches are numbered by the structure of the U-Net, and SDXL's has nine of them where Stable Diffusion 1.5 has twelve:
`cache_branch_id` goes from 0 to 8, and a number means another place than in 1.5. The script prints them; `deepcache
info sdxl` also tells what a shallow step at each of them costs. With `guidance_reuse=True` a shallow step runs only the
half of the batch that has the prompt, which halves what it costs.
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


def draw(pipe: StableDiffusionXLPipeline, prompt: str) -> Image.Image:
    print("branches:", ", ".join(f"{branch.number} {branch.name}" for branch in skip_branches(pipe.unet)))
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0, guidance_reuse=True))
    # Guidance reuse takes guidance: with a guidance_scale of 1 or less the run is refused.
    generator = torch.Generator().manual_seed(0)
    image = pipe(prompt, num_inference_steps=50, guidance_scale=5.0, generator=generator).images[0]
    print(engine.stats)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="draw with a tiny SDXL of random weights")
    parser.add_argument("--output", default="sdxl.png", help="the picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe = tiny_models.stable_diffusion_xl()
    else:
        pipe = load()
    draw(pipe, "a fox asleep in fresh snow, morning light").save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
