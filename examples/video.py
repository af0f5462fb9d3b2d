"""Stable Video Diffusion: a video from an image.

    python examples/video.py          # needs a GPU and downloads the model and an image
    python examples/video.py --tiny   # on a CPU, offline, with random weights: it generates noise

The pipeline's `unet`, a UNetSpatioTemporalConditionModel, denoises all frames of the video in one call. It has branches
0 to 11 like that of Stable Diffusion; each consists of a spatial layer and its temporal counterpart. DeepCache does not
change the decoding of the frames; a smaller `decode_chunk_size` decodes fewer at once and needs less memory.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.utils import export_to_gif, load_image
from PIL import Image, ImageOps

from DeepCache import DeepCacheConfig, apply_deepcache

ROCKET = (
    "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/diffusers/svd-docstring-example.jpeg"
)


def load() -> StableVideoDiffusionPipeline:
    name = "stabilityai/stable-video-diffusion-img2vid-xt"
    return StableVideoDiffusionPipeline.from_pretrained(name, dtype=torch.float16, variant="fp16").to("cuda")


def video(pipe: StableVideoDiffusionPipeline, image: Image.Image) -> list[Image.Image]:
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=0))
    size = {"width": image.width, "height": image.height}
    generator = torch.Generator().manual_seed(0)
    frames = pipe(image, **size, num_inference_steps=25, decode_chunk_size=4, generator=generator).frames[0]
    print(engine.stats)
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use a tiny model with random weights")
    parser.add_argument("--image", default=ROCKET, help="file or URL of the first image (default: a rocket)")
    parser.add_argument("--output", default="video.gif", help="the video to write (default: %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        import tiny_models

        pipe, image = tiny_models.stable_video_diffusion(), tiny_models.sketch()
    else:
        pipe, image = load(), ImageOps.fit(load_image(options.image), (1024, 576))
    frames = video(pipe, image)
    export_to_gif(frames, options.output, fps=7)
    print("wrote", options.output, "with", len(frames), "frames")


if __name__ == "__main__":
    main()
