"""What a shallow step costs on denoisers of other families than Stable Diffusion's, and whether cuts are exact.

The costs are multiply-accumulates counted on the meta device: no weights and no arithmetic. The cuts are those of the
small denoisers in `benchmarks/harness/denoiser_families.py`: at each of them, a shallow step with the true deep feature
must return the bits of the full step.

    python -m benchmarks.families
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanDiT2DModel, Kandinsky3UNet, StableCascadeUNet
from torch import nn

from benchmarks.harness.denoiser_families import FAMILIES, Family, denoiser_of
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from DeepCache.engine.cost import count_costs
from DeepCache.engine.layouts import layout_of, skip_branches
from DeepCache.models.description import limit_speed_up

INTERVALS = (2, 3, 5)


@dataclass(frozen=True)
class Published:
    """A published denoiser, called as its pipeline calls it.

    Args:
        name: for the page.
        build: makes it; the widths are those of the published weights.
        call: its arguments.
        steps: what its pipeline takes by default.
    """

    name: str
    build: Callable[[], nn.Module]
    call: Callable[[], dict[str, Any]]
    steps: int


def _cascade_decoder() -> nn.Module:
    residual, attention = ("SDCascadeResBlock", "SDCascadeTimestepBlock"), ("SDCascadeAttnBlock",)
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=1280,
        patch_size=2,
        block_out_channels=(320, 640, 1280, 1280),
        num_attention_heads=(-1, -1, 20, 20),
        dropout=(0, 0, 0.1, 0.1),
        down_num_layers_per_block=(2, 6, 28, 6),
        up_num_layers_per_block=(6, 28, 6, 2),
        down_blocks_repeat_mappers=(1, 1, 1, 1),
        up_blocks_repeat_mappers=(3, 3, 2, 2),
        block_types_per_layer=(residual, residual, residual + attention, residual + attention),
        effnet_in_channels=16,
        pixel_mapper_in_channels=3,
        timestep_conditioning_type=("sca",),
    )


PUBLISHED = (
    Published(
        "Kandinsky 3, 1024 px",
        Kandinsky3UNet,
        lambda: {
            "sample": torch.zeros(2, 4, 128, 128),
            "timestep": torch.zeros(()),
            "encoder_hidden_states": torch.zeros(2, 128, 4096),
            "encoder_attention_mask": torch.ones(2, 128),
        },
        steps=25,
    ),
    Published(
        "Stable Cascade, prior, 1024 px",
        lambda: StableCascadeUNet(clip_text_in_channels=1280, clip_image_in_channels=768, switch_level=(False,)),
        lambda: {
            "sample": torch.zeros(2, 16, 24, 24),
            "timestep_ratio": torch.zeros(2),
            "clip_text_pooled": torch.zeros(2, 1, 1280),
            "clip_text": torch.zeros(2, 77, 1280),
            "clip_img": torch.zeros(2, 1, 768),
        },
        steps=20,
    ),
    Published(
        "Stable Cascade, decoder, 1024 px",
        _cascade_decoder,
        lambda: {
            "sample": torch.zeros(1, 4, 256, 256),
            "timestep_ratio": torch.zeros(1),
            "clip_text_pooled": torch.zeros(1, 1, 1280),
            "effnet": torch.zeros(1, 16, 24, 24),
        },
        steps=10,
    ),
    Published(
        "HunyuanDiT 1.2, 1024 px",
        lambda: HunyuanDiT2DModel(
            num_attention_heads=16,
            attention_head_dim=88,
            in_channels=4,
            patch_size=2,
            sample_size=128,
            hidden_size=1408,
            num_layers=40,
            mlp_ratio=4.3637,
            use_style_cond_and_image_meta_size=False,
        ),
        lambda: {
            "hidden_states": torch.zeros(2, 4, 128, 128),
            "timestep": torch.zeros(2),
            "encoder_hidden_states": torch.zeros(2, 77, 1024),
            "text_embedding_mask": torch.ones(2, 77),
            "encoder_hidden_states_t5": torch.zeros(2, 256, 2048),
            "text_embedding_mask_t5": torch.ones(2, 256),
            "image_rotary_emb": (torch.zeros(4096, 88), torch.zeros(4096, 88)),
        },
        steps=50,
    ),
)


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    result = provenance(0) | {
        "families": [exact_cuts(family) for family in FAMILIES],
        "published": [row for published in PUBLISHED for row in costs_of(published)],
    }
    write_result(options.output, result)
    for row in result["families"]:
        print(f"{row['family']:26} {row['exact']} of {row['cuts']} cuts exact")
    for row in result["published"]:
        print(f"{row['denoiser']:34} {row['branch']:3} {row['share']:7.2%} {row['speed_up']}")


@torch.no_grad()
def exact_cuts(family: Family) -> dict[str, Any]:
    """How many cuts of a family there are, with and without a ControlNet's residuals, and how many are exact."""
    denoiser = denoiser_of(family)
    exact = []
    for conditions in (dict, family.control):
        for branch in skip_branches(denoiser) if conditions is not None else ():
            apply_deepcache(denoiser, DeepCacheConfig(2, branch.number, forecast="none"))
            full, shallow = (family(denoiser, 0, t, **conditions()) for t in torch.full((2,), 0.5))
            exact.append(torch.equal(full, shallow))
            remove_deepcache(denoiser)
    layout = type(layout_of(denoiser)).__name__
    return {"family": family.name, "layout": layout, "cuts": len(exact), "exact": sum(exact)}


def costs_of(published: Published) -> list[dict[str, Any]]:
    """What a shallow step costs at each branch, and how much faster a run could be if time went by that alone."""
    with torch.device("meta"):
        denoiser = published.build().eval()
        costs = count_costs(denoiser, (), published.call())
    return [
        {
            "denoiser": published.name,
            "steps": published.steps,
            "macs": costs.full,
            "branch": branch.number,
            "of": branch.name,
            "share": round(costs.share(branch.number), 5),
            "speed_up": {
                str(interval): round(limit_speed_up(interval, costs.share(branch.number), published.steps), 3)
                for interval in INTERVALS
            },
        }
        for branch in skip_branches(denoiser)
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
