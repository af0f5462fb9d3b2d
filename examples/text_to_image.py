"""Text to image with Stable Diffusion 1.5, through `DeepCacheSDHelper`, the published interface.

    python examples/text_to_image.py          # takes a GPU, and downloads the model
    python examples/text_to_image.py --tiny   # at once on a CPU, offline, with the model that comes with DeepCache

Four lines are all that a program needs, and with these settings the picture is the one that the reference package
draws. The settings may be changed while the helper is enabled, and each run begins with a full step, so one pipeline
draws as many pictures as you like. After `disable()` the pipeline is as it was before.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from DeepCache import DeepCacheSDHelper


def load() -> StableDiffusionPipeline:
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    return StableDiffusionPipeline.from_pretrained(name, dtype=torch.float16).to("cuda")


def draw(pipe: StableDiffusionPipeline, prompt: str) -> Image.Image:
    helper = DeepCacheSDHelper(pipe=pipe)
    # Closer to the image without caching, at the same cost: add forecast="limited".
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    image = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    print(helper.stats)
    helper.disable()
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="draw with the model that comes with DeepCache")
    parser.add_argument("--output", default="text-to-image.png", help="the picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe, prompt = tiny_models.stable_diffusion(), tiny_models.PROMPT
    else:
        pipe, prompt = load(), "a photo of an astronaut on a moon"
    draw(pipe, prompt).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
