"""Text to image with Stable Diffusion 1.5 and `DeepCacheSDHelper`, the interface of the reference package.

    python examples/text_to_image.py          # needs a GPU and downloads the model
    python examples/text_to_image.py --tiny   # on a CPU, offline, with the bundled model

A program needs four lines. With these settings, the image is that of the reference package. The settings may change
while the helper is enabled, and one pipeline generates any number of images. `disable()` restores the pipeline.
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


def generate(pipe: StableDiffusionPipeline, prompt: str) -> Image.Image:
    helper = DeepCacheSDHelper(pipe=pipe)
    # For an image closer to the original at the same cost, add forecast="limited".
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    image = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    print(helper.stats)
    helper.disable()
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use the bundled model")
    parser.add_argument("--output", default="text-to-image.png", help="the image to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe, prompt = tiny_models.stable_diffusion(), tiny_models.PROMPT
    else:
        pipe, prompt = load(), "a photo of an astronaut on a moon"
    generate(pipe, prompt).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
