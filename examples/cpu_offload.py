"""Offloading: a pipeline in CPU memory, of which only the running model is on the GPU.

    python examples/cpu_offload.py          # needs a GPU and downloads the model
    python examples/cpu_offload.py --tiny   # on a CPU, offline, with the bundled model

Offloading may be enabled before or after DeepCache, disabled and enabled again: the image is the same.
`enable_sequential_cpu_offload()`, which moves the layers to the GPU one by one and needs even less memory, works as
well; a shallow step then does not move the layers that it does not run.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from DeepCache import DeepCacheConfig, apply_deepcache


def load() -> StableDiffusionXLPipeline:
    # Not moved to the GPU: offloading does that.
    name = "stabilityai/stable-diffusion-xl-base-1.0"
    return StableDiffusionXLPipeline.from_pretrained(name, dtype=torch.float16, variant="fp16")


def generate(pipe: StableDiffusionXLPipeline, prompt: str, device: str) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    pipe.enable_model_cpu_offload(device=device)
    image = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    print(engine.stats)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use the bundled model")
    parser.add_argument("--output", default="cpu-offload.png", help="the image to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        image = generate(tiny_models.stable_diffusion(), tiny_models.PROMPT, device="cpu")
    else:
        image = generate(load(), "a fox asleep in fresh snow, morning light", device="cuda")
    image.save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
