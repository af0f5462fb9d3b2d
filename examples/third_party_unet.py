"""A U-Net that is not part of diffusers, in a custom sampling loop.

    python examples/third_party_unet.py          # needs a GPU; nothing is downloaded
    python examples/third_party_unet.py --tiny   # on a CPU, with a small U-Net

DeepCache recognises a U-Net by its structure, not by its class:

- `down_blocks`, `mid_block` and `up_blocks`, the first and the last an `nn.ModuleList`;
- blocks with their layers in an `nn.ModuleList`, and resampling layers in `downsamplers` and `upsamplers`;
- a skip connection from the first layer and from each layer and downsampler of the down path, each to a layer of the up
  path.

`skip_branches` lists the skip connections, or raises an error that names what is missing. A pipeline needs only a
`unet` and a `scheduler`. The weights are random here, so the image is noise.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import nn

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.layouts import skip_branches


class Layer(nn.Conv2d):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, padding=1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.tanh(super().forward(x) + noise)


class Down(nn.Module):
    def __init__(self, width: int, downsample: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(width, width), Layer(width, width)])
        self.downsamplers = nn.ModuleList([nn.AvgPool2d(2)]) if downsample else None

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, noise)
            skips.append(x)
        # None in a shallow step that ends in this block.
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x


class Up(nn.Module):
    def __init__(self, width: int, upsample: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(2 * width, width) for _ in range(3))
        self.upsamplers = nn.ModuleList([nn.Upsample(scale_factor=2)]) if upsample else None

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(torch.cat([x, skips.pop()], dim=1), noise)
        return x if self.upsamplers is None else self.upsamplers[0](x)


class PixelUNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.down_blocks = nn.ModuleList([Down(width, downsample=True), Down(width, downsample=False)])
        self.mid_block = Layer(width, width)
        self.up_blocks = nn.ModuleList([Up(width, upsample=True), Up(width, upsample=False)])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x, noise = self.first(sample), timestep / 1000
        skips = [x]
        for block in self.down_blocks:
            x = block(x, skips, noise)
        x = self.mid_block(x, noise)
        for block in self.up_blocks:
            x = block(x, skips, noise)
        return self.last(x)


# Without gradients, as in pipelines: a call with gradients is not a step of a denoising run.
@torch.no_grad()
def generate(unet: nn.Module, device: str) -> Image.Image:
    scheduler = DDIMScheduler(clip_sample=False)
    pipe = SimpleNamespace(unet=unet, scheduler=scheduler)
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3, cache_branch_id=1))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    scheduler.set_timesteps(50)
    for timestep in scheduler.timesteps:
        x = scheduler.step(unet(x, timestep), timestep, x).prev_sample
    print(engine.stats)
    pixels = (255 * (x[0] - x.min()) / (x.max() - x.min())).byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="use a small U-Net on the CPU")
    parser.add_argument("--output", default="third-party-unet.png", help="the image to write (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    device, width = ("cpu", 16) if options.tiny else ("cuda", 256)
    unet = PixelUNet(width).to(device)
    print("branches:", ", ".join(f"{branch.number} {branch.name}" for branch in skip_branches(unet)))
    generate(unet, device).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
