"""LoRA: loaded and fused while DeepCache is applied.

    python examples/lora.py          # needs a GPU and `pip install peft`, and downloads a model and a LoRA
    python examples/lora.py --tiny   # on a CPU, offline, with a LoRA of random weights

A LoRA may be loaded, scaled, switched or unloaded before or after DeepCache is applied: the next image uses it from its
first step, which is full. Fuse a LoRA that you keep: full and shallow steps then run the layers of the model alone. The
image without the LoRA is on the left, the one with it on the right.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import make_image_grid
from PIL import Image

from DeepCache import DeepCacheConfig, apply_deepcache


def load() -> StableDiffusionXLPipeline:
    name = "stabilityai/stable-diffusion-xl-base-1.0"
    return StableDiffusionXLPipeline.from_pretrained(name, dtype=torch.float16, variant="fp16").to("cuda")


def generate(pipe: StableDiffusionXLPipeline, prompt: str, lora: Any, **options: Any) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    without = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    pipe.load_lora_weights(lora, **options)
    pipe.fuse_lora()
    # The separate layers are not needed after fusing.
    pipe.unload_lora_weights()
    image = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    print(engine.stats)
    return make_image_grid([without, image], rows=1, cols=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use the bundled model")
    parser.add_argument("--output", default="lora.png", help="the images to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe = tiny_models.stable_diffusion()
        image = generate(pipe, tiny_models.PROMPT, tiny_models.lora(pipe.unet))
    else:
        prompt = "pixel art, a small lighthouse by the sea"
        image = generate(load(), prompt, "nerijs/pixel-art-xl", weight_name="pixel-art-xl.safetensors")
    image.save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
