"""ControlNet: a picture with the outlines of another.

    python examples/controlnet.py          # takes a GPU, and downloads two models and a picture
    python examples/controlnet.py --tiny   # at once on a CPU, offline, with a ControlNet that has learned nothing yet

The ControlNet hands the U-Net a residual for each skip branch. It still runs at every step, in full, and what is
printed counts the U-Net alone. A shallow step takes the residuals down to the branch at which it is cut; the others
went into the deep feature at the last full step. Where outlines matter more than time, a deeper branch or a smaller
interval renews more of them.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.utils import load_image
from PIL import Image, ImageFilter, ImageOps

from DeepCache import DeepCacheConfig, apply_deepcache

PAINTING = (
    "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/input_image_vermeer.png"
)


def load() -> StableDiffusionControlNetPipeline:
    controlnet = ControlNetModel.from_pretrained("lllyasviel/control_v11p_sd15_canny", dtype=torch.float16)
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    pipe = StableDiffusionControlNetPipeline.from_pretrained(name, controlnet=controlnet, dtype=torch.float16)
    return pipe.to("cuda")


def outlines(image: Image.Image) -> Image.Image:
    """White lines on black, as this ControlNet was trained on."""
    edges = image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    return edges.point(lambda value: 255 * (value > 24)).convert("RGB")


def draw(pipe: StableDiffusionControlNetPipeline, prompt: str, image: Image.Image) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    generator = torch.Generator().manual_seed(0)
    drawn = pipe(prompt, image=outlines(image), num_inference_steps=50, generator=generator).images[0]
    print(engine.stats)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="draw with the model that comes with DeepCache")
    parser.add_argument("--image", default=PAINTING, help="file or URL of the picture with the outlines")
    parser.add_argument("--output", default="controlnet.png", help="the picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe, prompt, image = tiny_models.controlnet(), tiny_models.PROMPT, tiny_models.picture()
    else:
        pipe, prompt = load(), "a portrait of a robot in a blue scarf"
        image = ImageOps.fit(load_image(options.image), (512, 512))
    draw(pipe, prompt, image).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
