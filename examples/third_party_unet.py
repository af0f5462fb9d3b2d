"""A U-Net that diffusers does not have, in a sampling loop of one's own.

    python examples/third_party_unet.py          # takes a GPU; nothing is downloaded
    python examples/third_party_unet.py --tiny   # at once on a CPU, a narrow one

DeepCache looks for a shape and never for a class:

- `down_blocks`, `mid_block` and `up_blocks`, the first and the last an `nn.ModuleList`;
- blocks that keep their layers in an `nn.ModuleList`, and what changes the size in `downsamplers` and `upsamplers`;
- a skip connection from the first layer of all, from each layer and from each downsampler of the way down, and for each
  a layer of the way up that takes it.

`skip_branches` finds the skip connections, or says what is missing. Of a pipeline, a `unet` and a `scheduler` are
enough. The weights are random here, so what is drawn is noise.
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
        # A shallow step that ends within this block finds None.
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


# Without gradients, as in pipelines: a call whose gradient is wanted is no step of a trajectory.
@torch.no_grad()
def draw(unet: nn.Module, device: str) -> Image.Image:
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
    parser.add_argument("--tiny", action="store_true", help="draw with a narrow one on the CPU")
    parser.add_argument("--output", default="third-party-unet.png", help="the picture to write (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    device, width = ("cpu", 16) if options.tiny else ("cuda", 256)
    unet = PixelUNet(width).to(device)
    print("branches:", ", ".join(f"{branch.number} {branch.name}" for branch in skip_branches(unet)))
    draw(unet, device).save(options.output)
    print("wrote", options.output)


if __name__ == "__main__":
    main()
