"""ControlNet: an image with the outlines of another.

    python examples/controlnet.py          # needs a GPU and downloads two models and an image
    python examples/controlnet.py --tiny   # on a CPU, offline, with an untrained ControlNet

The ControlNet computes a residual for each skip branch of the U-Net. It runs in full at every step; the printed
statistics count the U-Net alone. A shallow step uses the residuals above its branch; the others are part of the deep
feature of the last full step. If outlines matter more than time, a deeper branch or a smaller interval updates more of
them.
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
    """White lines on black, as in the training data of this ControlNet."""
    edges = image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    return edges.point(lambda value: 255 * (value > 24)).convert("RGB")


def generate(pipe: StableDiffusionControlNetPipeline, prompt: str, image: Image.Image) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    generator = torch.Generator().manual_seed(0)
    generated = pipe(prompt, image=outlines(image), num_inference_steps=50, generator=generator).images[0]
    print(engine.stats)
    return generated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use the bundled model")
    parser.add_argument("--image", default=PAINTING, help="file or URL of the image with the outlines")
    parser.add_argument("--output", default="controlnet.png", help="the image to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe, prompt, image = tiny_models.controlnet(), tiny_models.PROMPT, tiny_models.sketch()
    else:
        pipe, prompt = load(), "a portrait of a robot in a blue scarf"
        image = ImageOps.fit(load_image(options.image), (512, 512))
    generate(pipe, prompt, image).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
