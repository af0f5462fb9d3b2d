"""Image to image: an image regenerated from a prompt.

    python examples/image_to_image.py          # needs a GPU and downloads the model and a sketch
    python examples/image_to_image.py --tiny   # on a CPU, offline, with the bundled model

Only the share `strength` of `num_inference_steps` runs, here 30 of 50. The schedule starts at the first step that runs,
which is full. Keep `num_inference_steps` high: in a short run, each step changes the image more, and the deep feature
of the last full step is less accurate.
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


def regenerate(pipe: StableDiffusionImg2ImgPipeline, prompt: str, image: Image.Image) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    generator = torch.Generator().manual_seed(0)
    regenerated = pipe(prompt, image=image, strength=0.6, num_inference_steps=50, generator=generator).images[0]
    print(engine.stats)
    return regenerated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use the bundled model")
    parser.add_argument("--image", default=SKETCH, help="file or URL of the initial image (default: a sketch)")
    parser.add_argument("--output", default="image-to-image.png", help="the image to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe, prompt, image = tiny_models.image_to_image(), "a green star left of a yellow heart", tiny_models.sketch()
    else:
        pipe, prompt = load(), "a fantasy landscape with mountains, a river and a castle, detailed painting"
        image = ImageOps.fit(load_image(options.image), (768, 512))
    regenerate(pipe, prompt, image).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
