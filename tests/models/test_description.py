from __future__ import annotations

import pytest

from DeepCache.models import describe_pipeline, limit_speed_up, load_pipeline


def test_description_with_and_without_guidance():
    pipe = load_pipeline("shapes", device="cpu")
    guided, unguided = describe_pipeline(pipe, guidance=5.0), describe_pipeline(pipe, guidance=1.0)
    assert (guided.batch, unguided.batch) == (2, 1)
    assert guided.full_macs == 2 * unguided.full_macs
    assert guided.sample == (16, 16)
    assert [branch.number for branch in guided.branches] == list(range(len(guided.branches)))
    assert guided.branches[0].name == "conv_in"


def test_pipeline_without_text():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    description = describe_pipeline(DDPMPipeline(unet=unet, scheduler=DDPMScheduler()))
    assert description.batch == 1
    assert 0 < description.branches[0].mac_share < 1


@pytest.mark.parametrize(
    ("interval", "share", "expected"), [(1, 0.5, 1.0), (2, 0.0, 2.0), (5, 0.0, 5.0), (5, 1.0, 1.0), (3, 0.0, 50 / 17)]
)
def test_limit(interval, share, expected):
    assert limit_speed_up(interval, share) == pytest.approx(expected)
