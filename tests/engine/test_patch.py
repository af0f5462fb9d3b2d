import pytest
import torch
from diffusers import UNet2DConditionModel

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.engine.layouts import layout_of, skip_branches
from DeepCache.engine.patch import ShallowPatch
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.slots import kept_slots

pytestmark = pytest.mark.usefixtures("nothing_is_counted")


def answers(branch, interval=2):
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(interval, branch))
    return pipe.call(1, 0), pipe.call(3, 1), pipe.call(3, 2)


# Full at x=1, t=10: 1 2 4 8 | 18 | 26 30 32 33. Full at x=3, t=30: 3 6 12 24 | 54 | 78 90 96 99.
@pytest.mark.parametrize(
    ("branch", "shallow"),
    [
        (0, 32 + 3),
        (1, 30 + 6 + 3),
        (2, 26 + 12 + 6 + 3),
        (3, 18 + 24 + 12 + 6 + 3),
    ],
)
def test_a_shallow_step_adds_the_new_skips_to_the_stored_feature(branch, shallow):
    assert answers(branch) == (33, shallow, 99)


def test_a_unet_without_a_mid_block_is_cut_above_its_deepest_skip():
    unet = DummyUNet(mid_block=False)
    assert [branch.number for branch in skip_branches(unet)] == [0, 1, 2]
    pipe = Pipeline(unet)
    engine = apply_deepcache(pipe, DeepCacheConfig(2, 2))
    # 1 2 4 8 | 16 20 22 23, then 16 + 12 + 6 + 3.
    assert (pipe.call(1, 0), pipe.call(3, 1)) == (23, 37)
    engine.detach()
    assert unet.mid_block is None
    with pytest.raises(ValueError, match=r"between 0 and 2 .*got 3"):
        apply_deepcache(pipe, DeepCacheConfig(2, 3))


@pytest.mark.parametrize("layers_per_block", [1, 2, 3, (1, 2)])
def test_branches_are_numbered_from_the_real_structure(layers_per_block):
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=layers_per_block,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    first, second = (layers_per_block, layers_per_block) if isinstance(layers_per_block, int) else layers_per_block
    assert [branch.name for branch in skip_branches(unet)] == [
        "conv_in",
        *(f"down_blocks.0 layer {layer}" for layer in range(first)),
        "down_blocks.0 downsampler",
        *(f"down_blocks.1 layer {layer}" for layer in range(second)),
    ]


@pytest.mark.parametrize("branch", range(4))
def test_registered_modules_are_never_touched(branch):
    unet = DummyUNet()
    before = list(unet.named_modules())
    attributes = {module: dict(module.__dict__) for module in unet.modules()}
    layout = layout_of(unet)
    patch = ShallowPatch(layout, layout.branches[branch])
    patch.apply(torch.zeros(1))
    assert list(unet.named_modules()) == before
    patch.remove()
    patch.remove()
    assert {module: dict(module.__dict__) for module in unet.modules()} == attributes


def test_a_layer_replaced_between_runs_is_used():
    class Triple(torch.nn.Module):
        def forward(self, x):
            return 3 * x

    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(2, 1))
    pipe.call(1, 0)
    pipe.unet.down_blocks[0].layers[0] = Triple()
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    # Full: 1 3 6 12 | 22 | 34 40 43 44; shallow: 40 + 9 + 3.
    assert (pipe.call(1, 0), pipe.call(3, 1)) == (44, 52)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda unet: delattr(unet, "up_blocks"), "no nn.ModuleList 'up_blocks'"),
        (lambda unet: delattr(unet, "mid_block"), "no 'mid_block'"),
        (lambda unet: setattr(unet.down_blocks[0], "skip_conv", None), "down_blocks.0 carries a second state"),
        (
            lambda unet: unet.up_blocks.append(unet.up_blocks[0]),
            "makes 4 skip connections, one per layer, and its up path takes 6",
        ),
        (lambda unet: delattr(unet.up_blocks[0], "layers"), "up_blocks.0 has no list of layers"),
        (
            lambda unet: setattr(unet.up_blocks[0], "more", torch.nn.ModuleList([torch.nn.Identity()])),
            r"lists of layers of up_blocks.0 differ in length \(layers 2, more 1\)",
        ),
    ],
)
def test_a_unet_of_another_structure_is_refused_with_the_reason(break_it, reason):
    unet = DummyUNet()
    break_it(unet)
    with pytest.raises(TypeError, match=f"cannot cut a DummyUNet: .*{reason}"):
        apply_deepcache(Pipeline(unet))
    assert not unet._forward_hooks


@pytest.mark.parametrize("forecast", ["limited", "linear"])
def test_the_deep_feature_has_no_autograd_history_and_is_gone_after_the_run(forecast):
    pipe = Pipeline(DummyUNet())
    weight = torch.ones(1, requires_grad=True)
    pipe.unet.up_blocks[1].layers[0].register_forward_hook(lambda module, args, output: output * weight)
    pipe.scheduler.timesteps = torch.arange(4)
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast=forecast))
    for t in pipe.scheduler.timesteps[:3]:
        pipe.unet(torch.ones(1), t)
        (stored,) = kept_slots(engine)
        assert not stored.features[0].at(1).requires_grad
    assert engine.stats.bytes_kept == 4
    pipe.unet(torch.ones(1), pipe.scheduler.timesteps[3])
    assert not kept_slots(engine)
    assert engine.stats.bytes_kept == 8
    remove_deepcache(pipe)
