"""Offloading: a pipeline that waits in the memory of the CPU, with only the model at work on the GPU.

    python examples/cpu_offload.py          # takes a GPU, and downloads the model
    python examples/cpu_offload.py --tiny   # at once on a CPU, offline, with the model that comes with DeepCache

Offloading may be put on before DeepCache or after it, be taken off and put on again: the picture is the same.
`enable_sequential_cpu_offload()`, which brings the layers to the GPU one by one and so takes less memory still, works
as well; there a shallow step also saves moving the layers that it does not run.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from DeepCache import DeepCacheConfig, apply_deepcache


def load() -> StableDiffusionXLPipeline:
    # Not moved to the GPU: that is for the offloading to do.
    name = "stabilityai/stable-diffusion-xl-base-1.0"
    return StableDiffusionXLPipeline.from_pretrained(name, dtype=torch.float16, variant="fp16")


def draw(pipe: StableDiffusionXLPipeline, prompt: str, device: str) -> Image.Image:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    pipe.enable_model_cpu_offload(device=device)
    image = pipe(prompt, num_inference_steps=50, generator=torch.Generator().manual_seed(0)).images[0]
    print(engine.stats)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="draw with the model that comes with DeepCache")
    parser.add_argument("--output", default="cpu-offload.png", help="the picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        image = draw(tiny_models.stable_diffusion(), tiny_models.PROMPT, device="cpu")
    else:
        image = draw(load(), "a fox asleep in fresh snow, morning light", device="cuda")
    image.save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
