"""Image to image: a picture redrawn after a prompt.

    python examples/image_to_image.py          # takes a GPU, and downloads the model and a sketch
    python examples/image_to_image.py --tiny   # at once on a CPU, offline, with the model that comes with DeepCache

Of `num_inference_steps` only the share `strength` runs, here 30 of 50. The steps that are left out do not count: the
first that runs is full, and the schedule goes on from there. Leave `num_inference_steps` high all the same: in a short
run each step is a longer way, and what was stored at the last full step fits less well.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.utils import load_image
from PIL import Image, ImageOps

from DeepCache import DeepCacheConfig, apply_deepcache

SKETCH = "https://raw.githubusercontent.com/CompVis/stable-diffusion/main/assets/stable-samples/img2img/sketch-mountains-input.jpg"


def load() -> StableDiffusionImg2ImgPipeline:
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return StableDiffusionImg2ImgPipeline.from_pretrained(name, dtype=torch.float16).to("cuda")


def redraw(pipe: StableDiffusionImg2ImgPipeline, prompt: str, image: Image.Image) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    generator = torch.Generator().manual_seed(0)
    redrawn = pipe(prompt, image=image, strength=0.6, num_inference_steps=50, generator=generator).images[0]
    print(engine.stats)
    return redrawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="draw with the model that comes with DeepCache")
    parser.add_argument("--image", default=SKETCH, help="file or URL of the picture to redraw (default: a sketch)")
    parser.add_argument("--output", default="image-to-image.png", help="the picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe, prompt, image = tiny_models.image_to_image(), "a green star left of a yellow heart", tiny_models.picture()
    else:
        pipe, prompt = load(), "a fantasy landscape with mountains, a river and a castle, detailed painting"
        image = ImageOps.fit(load_image(options.image), (768, 512))
    redraw(pipe, prompt, image).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
