"""Memory savings, dtypes, compiling, sharing and copying with DeepCache.

Features that must not change the result (offloading, copying, sharing, loading) are compared with DeepCache alone.
Others (dtypes, quantized weights) are compared with `LayersPutBack`, which does not use DeepCache. Both bit by bit.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    ControlNetModel,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch._dynamo.testing import CompileCounter

from DeepCache import DeepCacheSDHelper, remove_deepcache
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_text_encoder,
    clip_tokenizer,
    ddim,
    generator,
    image,
    quiet,
    seeded,
    vae,
)
from tests.compatibility.conftest import Witness

with warnings.catch_warnings():
    # The automatic pipelines import every pipeline they know, Kolors' among them.
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

STEPS, INTERVAL, BRANCH, PATTERN = 5, 3, 1, "F..F."
CPU = torch.device("cpu")


def _unet(seed=0):
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        seed,
    )


def _controlnet(unet):
    return seeded(lambda: ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 4)))


def _pipeline(kind=StableDiffusionPipeline, seed=0, **components):
    """A pipeline with new components."""
    return quiet(
        kind(
            **{
                "vae": copy.deepcopy(vae()),
                # New: a text encoder that another pipeline used has hooks that cannot be pickled.
                "text_encoder": clip_text_encoder.__wrapped__(),
                "tokenizer": clip_tokenizer(),
                "unet": _unet(seed),
                "scheduler": ddim(),
                "safety_checker": None,
                "feature_extractor": None,
                "requires_safety_checker": False,
            }
            | components
        )
    )


def _controlled_pipeline(unet=None):
    unet = _unet() if unet is None else unet
    return _pipeline(StableDiffusionControlNetPipeline, unet=unet, controlnet=_controlnet(unet))


def _generate(pipe, seed=0, **call):
    """The decoded image of a run, from a prompt."""
    if isinstance(pipe, StableDiffusionControlNetPipeline):
        call = {"image": image(1)} | call
    if not isinstance(pipe, (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)):
        call = {"height": 64, "width": 64} | call
    return pipe(
        **{
            "prompt": "a red circle",
            "num_inference_steps": STEPS,
            "generator": generator(seed),
            "output_type": "pt",
        }
        | call
    ).images


def _helper(pipe, interval=INTERVAL):
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=BRANCH)
    return helper


@cache
def _plain():
    """The image of the plain pipeline."""
    with torch.autocast("cpu", enabled=False):
        return _generate(_pipeline())


@cache
def _cached(interval=INTERVAL, seed=0):
    """The image of the pipeline with DeepCache only."""
    pipe = _pipeline()
    with _helper(pipe, interval), torch.autocast("cpu", enabled=False):
        return _generate(pipe, seed)


def _generate_watched(pipe, pattern=PATTERN, **call):
    """The image of a pipeline with DeepCache, after a check of its full steps."""
    witness = Witness(pipe.unet)
    generated = _generate(pipe, **call)
    witness.remove()
    assert witness.take() == pattern
    return generated


def _generate_cached(pipe, pattern=PATTERN, **call):
    with _helper(pipe):
        return _generate_watched(pipe, pattern, **call)


class LayersPutBack:
    """Emulates DeepCache: every step runs the whole U-Net, and on shallow steps the hidden state that enters the first
    kept layer of the up path is replaced by that of the last full step."""

    def __init__(self, unet, interval=INTERVAL):
        resnets = unet.up_blocks[-1].resnets
        kept = len(resnets) - 1 - BRANCH
        self._channels = resnets[kept - 1].out_channels
        self._interval, self._steps = interval, count()
        self._handle = resnets[kept].register_forward_pre_hook(self._put_back)

    def _put_back(self, layer, args):
        hidden, *rest = args
        if next(self._steps) % self._interval == 0:
            self._deep = hidden[:, : self._channels].clone()
        # The skip connection has been joined to the hidden state already.
        return torch.cat([self._deep, hidden[:, self._channels :]], dim=1), *rest

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._handle.remove()


def test_emulation_equals_deepcache():
    pipe = _pipeline()
    with LayersPutBack(pipe.unet):
        assert torch.equal(_generate(pipe), _cached())
    assert not torch.equal(_cached(), _plain())


# Features that change the result.


def _channels_last(pipe):
    pipe.unet.to(memory_format=torch.channels_last)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def _to(dtype):
    return lambda pipe: pipe.to(dtype, silence_dtype_warnings=True)


def _layerwise(compute):
    def cast(pipe):
        pipe.to(compute, silence_dtype_warnings=True)
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
        assert pipe.unet.mid_block.resnets[0].conv1.weight.dtype is torch.float8_e4m3fn

    return cast


def _int8(pipe):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(pipe.unet, quantization.Int8WeightOnlyConfig())
    assert type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2].weight) is not torch.nn.Parameter


def _fuse(pipe):
    pipe.fuse_qkv_projections(vae=False)
    assert pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.fused_projections


def _plain_attention(pipe):
    pipe.unet.set_attn_processor(AttnProcessor())


def _integration(function, name, note="", test=None):
    return pytest.param(function, id=test or name, marks=pytest.mark.integration(name, note))


LAYERWISE = "fp8 storage, bf16 or fp32 compute"
CHANGING = [
    _integration(_channels_last, "channels_last"),
    _integration(_to(torch.bfloat16), "bf16"),
    _integration(_to(torch.float16), "fp16"),
    _integration(_layerwise(torch.bfloat16), "Layerwise casting", LAYERWISE, test="layerwise casting, bf16"),
    _integration(_layerwise(torch.float32), "Layerwise casting", LAYERWISE, test="layerwise casting, fp32"),
    _integration(_int8, "torchao quantization", "int8 weights, before or after `enable()`"),
    _integration(_fuse, "Fused QKV projections"),
    _integration(_plain_attention, "Attention processors", "before or after `enable()`"),
]


@pytest.mark.parametrize("apply", CHANGING)
class TestWhatChangesNumbers:
    def test_applied_first(self, apply):
        pipe = _pipeline()
        apply(pipe)
        plain = _generate(pipe)
        with LayersPutBack(pipe.unet):
            expected = _generate(pipe)
        assert not torch.equal(expected, plain)
        assert torch.equal(_generate_cached(pipe), expected)
        with _helper(pipe, interval=1):
            assert torch.equal(_generate(pipe), plain)
        assert torch.equal(_generate(pipe), plain)

    def test_applied_while_enabled(self, apply):
        first = _pipeline()
        apply(first)
        with _helper(first):
            expected = _generate(first)
        plain = _generate(first)

        pipe = _pipeline()
        helper = _helper(pipe)
        helper.enable()
        assert torch.equal(_generate(pipe), _cached())
        apply(pipe)
        assert torch.equal(_generate_watched(pipe), expected)
        helper.disable()
        assert torch.equal(_generate(pipe), plain)

    def test_mac_share_is_counted(self, apply):
        pipe = _pipeline()
        with _helper(pipe) as helper:
            _generate(pipe)
            expected = helper.stats.mac_share
            apply(pipe)
            _generate(pipe)
        assert helper.stats.uncounted == ""
        assert helper.stats.mac_share == expected


@pytest.mark.integration("Autocast")
class TestAutocast:
    @staticmethod
    def _autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def test_around_the_pipeline(self):
        pipe = _pipeline()
        with self._autocast():
            plain = _generate(pipe)
            with LayersPutBack(pipe.unet):
                expected = _generate(pipe)
            assert not torch.equal(plain, _plain())
            assert torch.equal(_generate_cached(pipe), expected)
            with _helper(pipe, interval=1):
                assert torch.equal(_generate(pipe), plain)

    def test_in_one_run_and_not_in_the_next(self):
        pipe = _pipeline()
        with _helper(pipe):
            with self._autocast():
                _generate(pipe)
            assert torch.equal(_generate(pipe), _cached())

    def test_from_a_full_step_to_a_shallow_one(self):
        """The stored feature is bfloat16 and the rest of the shallow step float32."""
        pipe = _pipeline()
        autocast = self._autocast()

        def toggle(pipe, step, timestep, tensors):
            if step == 0:
                autocast.__exit__(None, None, None)
            return tensors

        with _helper(pipe):
            autocast.__enter__()
            generated = _generate_watched(pipe, callback_on_step_end=toggle)
        assert generated.isfinite().all()

    def test_half_precision_weights_under_autocast(self):
        pipe = _pipeline().to(torch.bfloat16, silence_dtype_warnings=True)
        with self._autocast():
            with LayersPutBack(pipe.unet):
                expected = _generate(pipe)
            assert torch.equal(_generate_cached(pipe), expected)


@pytest.mark.integration("torchao quantization")
def test_unet_loaded_quantized(tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    from diffusers import TorchAoConfig

    _unet().save_pretrained(tmp_path)
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    unet = UNet2DConditionModel.from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.float32)
    pipe = _pipeline(unet=unet.eval())
    in_place = _pipeline()
    _int8(in_place)
    plain = _generate(pipe)
    assert torch.equal(_generate(in_place), plain)
    with LayersPutBack(pipe.unet):
        expected = _generate(pipe)
    assert torch.equal(_generate_cached(pipe), expected)
    assert torch.equal(_generate(pipe), plain)


@pytest.mark.integration("pipe.to", "also while DeepCache is enabled")
class TestPipeTo:
    def test_back_and_forth_while_enabled(self):
        pipe = _pipeline()
        with _helper(pipe):
            _generate(pipe)
            pipe.to(torch.float64)
            assert _generate_watched(pipe).dtype is torch.float64
            pipe.to(CPU, torch.float32)
            assert torch.equal(_generate(pipe), _cached())
        assert torch.equal(_generate(pipe), _plain())

    def test_in_the_middle_of_a_run(self):
        """The stored feature is of a dtype that the weights are no longer of."""
        pipe = _pipeline()

        def to_double(pipe, step, timestep, tensors):
            if step == 1:
                pipe.to(torch.float64)
            return {name: tensor.to(pipe.unet.dtype) for name, tensor in tensors.items()}

        with _helper(pipe):
            generated = _generate_watched(
                pipe,
                "F.FF.",
                callback_on_step_end=to_double,
                callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
            )
        assert generated.dtype is torch.float64


# What must not change a number.


def _model_offload(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def _sequential_offload(pipe):
    """What `enable_sequential_cpu_offload` does, but for the number of the device, which a CPU has not."""
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            cpu_offload(component, CPU, offload_buffers=len(component._parameters) > 0)
    assert pipe.unet.conv_in.weight.is_meta


OFFLOADS = [
    _integration(_model_offload, "Model offload", "before or after `enable()`"),
    _integration(_sequential_offload, "Sequential offload", "before or after `enable()`"),
]


@pytest.mark.parametrize("apply", OFFLOADS)
class TestOffload:
    def test_of_the_whole_pipeline_before_enable(self, apply):
        pipe = _pipeline()
        apply(pipe)
        for _ in range(2):
            assert torch.equal(_generate_cached(pipe), _cached())
            assert torch.equal(_generate(pipe), _plain())

    def test_of_the_whole_pipeline_while_enabled(self, apply):
        pipe = _pipeline()
        helper = _helper(pipe)
        helper.enable()
        assert torch.equal(_generate(pipe), _cached())
        apply(pipe)
        for _ in range(2):
            assert torch.equal(_generate_watched(pipe), _cached())
        helper.disable()
        assert torch.equal(_generate(pipe), _plain())

    def test_removed_while_enabled(self, apply):
        pipe = _pipeline()
        apply(pipe)
        with _helper(pipe):
            _generate(pipe)
            pipe.remove_all_hooks()
            pipe.to(CPU)
            assert torch.equal(_generate_watched(pipe), _cached())
        assert torch.equal(_generate(pipe), _plain())


# There, diffusers asks torch for an accelerator where there is none.
group_offload_works = pytest.mark.skipif(
    torch.__version__ < "2.7" and not torch.accelerator.is_available(), reason="torch 2.6 without an accelerator"
)


@pytest.fixture
def unset_memory_is_nan():
    """Memory that nobody has written to yet reads as not a number."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.integration("Group offload", "any group size, one component or the whole pipeline")
@group_offload_works
@pytest.mark.usefixtures("unset_memory_is_nan")
class TestGroupOffload:
    """The weights lie on disk, so that a layer which runs without having been loaded gives itself away."""

    @pytest.mark.parametrize(
        ("level", "blocks"), [("leaf_level", None), ("block_level", 1), ("block_level", 2), ("block_level", 4)]
    )
    @pytest.mark.parametrize("enabled_first", [False, True])
    def test_of_the_unet(self, level, blocks, enabled_first, tmp_path):
        pipe = _pipeline()
        helper = _helper(pipe)
        if enabled_first:
            helper.enable()
            _generate(pipe)
        pipe.unet.enable_group_offload(
            CPU, offload_type=level, num_blocks_per_group=blocks, offload_to_disk_path=str(tmp_path)
        )
        assert pipe.unet.up_blocks[-1].resnets[-1].conv1.weight.isnan().all()
        helper.enable()
        for _ in range(2):
            assert torch.equal(_generate_watched(pipe), _cached())
        helper.disable()
        assert torch.equal(_generate(pipe), _plain())

    def test_shallow_step_leaves_no_block_loaded(self, tmp_path):
        pipe = _pipeline()
        pipe.unet.enable_group_offload(
            CPU, offload_type="block_level", num_blocks_per_group=2, offload_to_disk_path=str(tmp_path)
        )
        loaded = []

        def look(pipe, step, timestep, tensors):
            loaded.extend(block for block in pipe.unet.down_blocks if not next(block.parameters()).isnan().any())
            return tensors

        with _helper(pipe):
            _generate(pipe, callback_on_step_end=look)
        assert not loaded

    def test_of_the_whole_pipeline(self):
        pipe = _pipeline()
        pipe.enable_group_offload(CPU, offload_type="leaf_level")
        assert torch.equal(_generate_cached(pipe), _cached())
        assert torch.equal(_generate(pipe), _plain())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline saved while enabled, after a run."""
    folder = tmp_path_factory.mktemp("saved")
    pipe = _pipeline()
    with _helper(pipe):
        _generate(pipe)
        pipe.save_pretrained(folder)
        # Saving disturbs nothing.
        assert torch.equal(_generate(pipe), _cached())
    return folder


@pytest.mark.integration("save_pretrained", "while DeepCache is enabled; the saved pipeline is loaded without it")
class TestSaved:
    def test_loads_as_a_pipeline_without_deepcache(self, saved):
        pipe = quiet(StableDiffusionPipeline.from_pretrained(saved, requires_safety_checker=False))
        assert not pipe.unet._forward_hooks
        assert torch.equal(_generate(pipe), _plain())
        assert torch.equal(_generate_cached(pipe), _cached())

    def test_loads_by_the_name_in_its_index(self, saved):
        pipe = quiet(AutoPipelineForText2Image.from_pretrained(saved, requires_safety_checker=False))
        assert type(pipe) is StableDiffusionPipeline

    def test_holds_the_files_of_one_saved_without(self, saved, tmp_path):
        _pipeline().save_pretrained(tmp_path)
        for part in ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
            assert (saved / part).read_bytes() == (tmp_path / part).read_bytes()


COPIES = [
    _integration(copy.deepcopy, "deepcopy", "the copy has its own DeepCache"),
    _integration(
        lambda pipe: pickle.loads(pickle.dumps(pipe)),
        "pickle",
        "the loaded pipeline has its own DeepCache",
    ),
]


@pytest.mark.parametrize("duplicate", COPIES)
class TestCopies:
    def test_both_generate_the_image_of_deepcache(self, duplicate):
        pipe = _pipeline()
        with _helper(pipe) as helper:
            _generate(pipe)
            twin = duplicate(pipe)
            before = helper.stats
            assert torch.equal(_generate_watched(twin), _cached())
            assert helper.stats == before
            assert torch.equal(_generate_watched(pipe), _cached())

    def test_settings_and_disable_of_one_do_not_affect_the_other(self, duplicate):
        pipe = _pipeline()
        helper = _helper(pipe)
        helper.enable()
        twin = duplicate(pipe)
        helper.set_params(cache_interval=2, cache_branch_id=BRANCH)
        assert torch.equal(_generate(twin), _cached())
        assert torch.equal(_generate(pipe), _cached(2))
        helper.disable()
        assert torch.equal(_generate(pipe), _plain())
        assert torch.equal(_generate(twin), _cached())
        remove_deepcache(twin)
        assert torch.equal(_generate(twin), _plain())

    def test_helper_replaces_deepcache_of_the_copy(self, duplicate):
        pipe = _pipeline()
        with _helper(pipe):
            twin = duplicate(pipe)
        with _helper(twin, interval=2):
            assert torch.equal(_generate(twin), _cached(2))
        assert torch.equal(_generate(twin), _plain())

    def test_removing_restores_the_copy(self, duplicate):
        pipe = _pipeline()
        with _helper(pipe):
            twin = duplicate(pipe)
        remove_deepcache(twin)
        assert type(twin) is StableDiffusionPipeline
        assert set(vars(twin)) == set(vars(pipe))
        assert set(vars(twin.unet)) == set(vars(pipe.unet))

    def test_another_unet_in_the_copy_is_followed(self, duplicate):
        pipe = _pipeline()
        with _helper(pipe):
            twin = duplicate(pipe)
        twin.unet = _unet()
        assert torch.equal(_generate_watched(twin), _cached())

    def test_copy_after_disable_has_no_deepcache(self, duplicate):
        pipe = _pipeline()
        with _helper(pipe):
            _generate(pipe)
        twin = duplicate(pipe)
        assert not twin.unet._forward_hooks
        assert torch.equal(_generate(twin), _plain())


@pytest.mark.integration("U-Net swapped while DeepCache is enabled")
class TestUNetSwapped:
    def test_for_one_of_half_precision(self):
        pipe = _pipeline().to(torch.bfloat16, silence_dtype_warnings=True)
        expected = _generate_cached(pipe)
        other, old = _pipeline(seed=1), pipe.unet
        with _helper(other):
            _generate(other)
            other.to(torch.bfloat16, silence_dtype_warnings=True)
            other.unet = old
            assert torch.equal(_generate_watched(other), expected)

    def test_for_one_with_other_blocks(self):
        wide = seeded(
            lambda: UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(8, 8, 8),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                cross_attention_dim=TEXT_WIDTH,
                attention_head_dim=2,
                norm_num_groups=4,
            )
        )
        expected = _generate_cached(_pipeline(unet=copy.deepcopy(wide)))
        pipe = _pipeline()
        with _helper(pipe):
            _generate(pipe)
            pipe.unet = wide
            assert torch.equal(_generate_watched(pipe), expected)


# One U-Net in several pipelines.


FROM_PIPE = [
    (AutoPipelineForText2Image, {}, PATTERN),
    (AutoPipelineForImage2Image, {"image": image(), "strength": 0.8}, "F..F"),
    (AutoPipelineForInpainting, {"image": image(), "mask_image": image(2)[:, :1], "strength": 1.0}, PATTERN),
]


def _from_pipe(auto, pipe):
    return quiet(auto.from_pipe(pipe))


@pytest.mark.integration(
    "from_pipe / AutoPipeline",
    "pipelines that share a U-Net share its DeepCache, with the latest settings",
)
class TestOneUNetInSeveralPipelines:
    @pytest.mark.parametrize(("auto", "call", "pattern"), FROM_PIPE, ids=lambda value: getattr(value, "__name__", ""))
    @pytest.mark.parametrize("enabled_first", [False, True])
    def test_the_other_pipeline_has_deepcache_too(self, auto, call, pattern, enabled_first):
        alone = _from_pipe(auto, _pipeline())
        plain, expected = _generate(alone, **call), _generate_cached(alone, pattern, **call)
        assert not torch.equal(plain, expected)

        pipe = _pipeline()
        helper = _helper(pipe)
        if enabled_first:
            helper.enable()
        other = _from_pipe(auto, pipe)
        assert type(other) is type(alone)
        assert other.unet is pipe.unet
        helper.enable()
        for _ in range(2):
            assert torch.equal(_generate_watched(other, pattern, **call), expected)
            assert torch.equal(_generate_watched(pipe), _cached())
        helper.disable()
        assert torch.equal(_generate(other, **call), plain)
        assert torch.equal(_generate(pipe), _plain())

    def test_the_latest_helper_counts_for_both(self):
        pipe = _pipeline()
        other = _from_pipe(AutoPipelineForText2Image, pipe)
        first, second = _helper(pipe), _helper(other, interval=2)
        first.enable()
        second.enable()
        assert torch.equal(_generate(pipe), _cached(2))
        assert torch.equal(_generate(other), _cached(2))
        first.disable()
        assert torch.equal(_generate(pipe), _cached(2))
        first.enable()
        assert torch.equal(_generate(other), _cached())
        second.disable()
        assert torch.equal(_generate(other), _cached())
        first.disable()
        assert torch.equal(_generate(pipe), _plain())
        assert torch.equal(_generate(other), _plain())

    def test_pipeline_with_its_own_scheduler(self):
        # This scheduler makes one call more than there are steps.
        scheduler = PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
        pattern = "F..F.."
        expected = _generate_cached(_pipeline(scheduler=scheduler), pattern)
        pipe = _pipeline()
        other = quiet(StableDiffusionPipeline.from_pipe(pipe, scheduler=scheduler))
        with _helper(pipe):
            _generate(pipe)
            assert torch.equal(_generate_watched(other, pattern), expected)
            assert torch.equal(_generate_watched(pipe), _cached())

    def test_another_unet_does_not_affect_the_shared_one(self):
        pipe = _pipeline()
        other = _from_pipe(AutoPipelineForText2Image, pipe)
        with _helper(pipe):
            other.unet = _unet()
            assert torch.equal(_generate(other), _plain())
            assert torch.equal(_generate(pipe), _cached())

    def test_removed_by_the_other_pipeline(self):
        pipe = _pipeline()
        other = _from_pipe(AutoPipelineForText2Image, pipe)
        _helper(pipe).enable()
        remove_deepcache(other)
        assert torch.equal(_generate(pipe), _plain())

    def test_a_pipeline_by_its_components(self):
        pipe = _pipeline()
        with _helper(pipe):
            other = quiet(StableDiffusionPipeline(**pipe.components, requires_safety_checker=False))
            assert torch.equal(_generate(other), _cached())
            assert torch.equal(_generate(pipe), _cached())


def _in_threads(work, arguments):
    # A thread has a number of its own of threads to compute with, and with more than one sums come out differently.
    with ThreadPoolExecutor(len(arguments), initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(work, arguments))


def _pipeline_of_a_thread():
    """The tests' pipelines share a tokenizer, which may be used by one thread at a time."""
    pipe = _pipeline()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    return pipe


@pytest.mark.integration("Threads", "one pipeline per thread")
class TestThreads:
    def test_each_thread_generates_its_own_image(self):
        """Each thread also reads its figures, while the others are in the middle of a run."""
        intervals = (2, 3, 2)
        pipes = [_pipeline_of_a_thread() for _ in intervals]

        def work(number):
            with _helper(pipes[number], intervals[number]) as helper:
                return [(_generate(pipes[number], seed), helper.stats) for seed in range(2)]

        alone = [work(number) for number in range(2)]
        for number, runs in enumerate(_in_threads(work, range(len(pipes)))):
            for (generated, stats), (expected, expected_stats) in zip(runs, alone[number % 2], strict=True):
                assert torch.equal(generated, expected)
                assert stats == expected_stats

    def test_plain_and_cached_pipeline(self):
        pipes = {0: _pipeline_of_a_thread(), INTERVAL: _pipeline_of_a_thread()}

        def work(interval):
            with _helper(pipes[interval], interval) if interval else contextlib.nullcontext():
                return [_generate(pipes[interval]) for _ in range(3)]

        plain, cached = _in_threads(work, list(pipes))
        assert all(torch.equal(generated, _plain()) for generated in plain)
        assert all(torch.equal(generated, _cached()) for generated in cached)


@pytest.mark.integration("Two pipelines interleaved")
def test_two_pipelines_step_by_step():
    """The second pipeline generates a whole image after every step of the first."""
    first, second = _pipeline(), _pipeline(seed=1)
    with _helper(second, interval=2):
        expected = _generate(second)
    generated = []

    def other(pipe, step, timestep, tensors):
        generated.append(_generate(second))
        return tensors

    with _helper(first) as helper, _helper(second, interval=2):
        assert torch.equal(_generate(first, callback_on_step_end=other), _cached())
        assert helper.stats.pattern == PATTERN
    assert len(generated) == STEPS
    assert all(torch.equal(each, expected) for each in generated)


# torch.compile.


def _unet_to_trace():
    """As little as there can be, since tracing takes longer than running."""
    return seeded(
        lambda: UNet2DConditionModel(
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            mid_block_type="UNetMidBlock2D",
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    )


@pytest.fixture
def graphs():
    torch.compiler.reset()
    yield CompileCounter()
    torch.compiler.reset()


@pytest.mark.integration("torch.compile", "regional: `pipe.unet.compile_repeated_blocks()`")
class TestRegionalCompilation:
    @pytest.mark.parametrize("compile_first", [True, False], ids=["compiled first", "enabled first"])
    def test_the_blocks_are_compiled_once(self, compile_first, graphs):
        pipe = _pipeline()
        helper = _helper(pipe)
        if compile_first:
            pipe.unet.compile_repeated_blocks(backend=graphs)
        helper.enable()
        if not compile_first:
            pipe.unet.compile_repeated_blocks(backend=graphs)
        assert torch.equal(_generate(pipe), _cached())
        built = graphs.frame_count
        assert built
        assert torch.equal(_generate(pipe, seed=1), _cached(seed=1))
        assert helper.stats.pattern == PATTERN
        helper.disable()
        assert torch.equal(_generate(pipe), _plain())
        assert graphs.frame_count == built

    def test_enabled_after_a_run(self, graphs):
        pipe = _pipeline()
        pipe.unet.compile_repeated_blocks(backend=graphs)
        assert torch.equal(_generate(pipe), _plain())
        assert torch.equal(_generate_cached(pipe), _cached())


@pytest.mark.integration("torch.compile + ControlNet")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_with_a_controlnet(graphs):
    alone = _controlled_pipeline(_unet_to_trace())
    expected, other = _generate_cached(alone), _generate_cached(alone, seed=1)
    pipe = _controlled_pipeline(_unet_to_trace())
    pipe.unet = torch.compile(pipe.unet, backend=graphs)
    with _helper(pipe) as helper:
        assert torch.equal(_generate(pipe), expected)
        # One graph for full steps and one for shallow ones.
        assert graphs.frame_count == 2
        assert torch.equal(_generate(pipe, seed=1), other)
        assert graphs.frame_count == 2
        assert helper.stats.pattern == PATTERN


@pytest.mark.integration("torch.compile + bf16")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_in_half_precision(graphs):
    alone = _pipeline(unet=_unet_to_trace()).to(torch.bfloat16, silence_dtype_warnings=True)
    expected = _generate_cached(alone)
    pipe = _pipeline(unet=_unet_to_trace()).to(torch.bfloat16, silence_dtype_warnings=True)
    with _helper(pipe):
        pipe.unet.compile(backend=graphs)
        assert torch.equal(_generate(pipe), expected)
        # Two, but for torch 2.6, which cannot trace all of it at once.
        built = graphs.frame_count
        assert torch.equal(_generate(pipe), expected)
        assert graphs.frame_count == built


# Pairs.


def _in_two_dtypes(function):
    return pytest.mark.parametrize(
        "dtype",
        [
            pytest.param(torch.bfloat16, marks=pytest.mark.integration("bf16 + ControlNet")),
            pytest.param(torch.float16, marks=pytest.mark.integration("fp16 + ControlNet")),
        ],
    )(function)


@_in_two_dtypes
def test_controlnet_in_half_precision(dtype):
    pipe = _controlled_pipeline().to(dtype, silence_dtype_warnings=True)
    plain = _generate(pipe)
    with LayersPutBack(pipe.unet):
        expected = _generate(pipe)
    assert not torch.equal(expected, plain)
    assert not torch.equal(expected, _generate_cached(pipe, image=image(3)))
    assert torch.equal(_generate_cached(pipe), expected)
    assert torch.equal(_generate(pipe), plain)


@pytest.mark.integration("Model offload + ControlNet")
def test_controlnet_with_model_offload():
    expected = _generate_cached(_controlled_pipeline())
    pipe = _controlled_pipeline()
    _model_offload(pipe)
    for _ in range(2):
        assert torch.equal(_generate_cached(pipe), expected)


def _add_lora(pipe):
    """Every attention projection of the U-Net gets a LoRA that changes what it does."""
    peft = pytest.importorskip("peft")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False), "style")
    for name, parameter in pipe.unet.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator(len(name)))


@pytest.mark.integration("LoRA + model offload")
@pytest.mark.integration("LoRA + sequential offload")
@pytest.mark.parametrize("offload", [_model_offload, _sequential_offload])
def test_lora_with_offload(offload):
    alone = _pipeline()
    _add_lora(alone)
    expected, plain = _generate_cached(alone), _generate(alone)
    assert not torch.equal(expected, _cached())
    pipe = _pipeline()
    _add_lora(pipe)
    offload(pipe)
    for _ in range(2):
        assert torch.equal(_generate_cached(pipe), expected)
    assert torch.equal(_generate(pipe), plain)


@pytest.mark.integration("LoRA + torchao quantization")
def test_lora_on_a_quantized_unet():
    pipe = _pipeline()
    _add_lora(pipe)
    _int8(pipe)
    with LayersPutBack(pipe.unet):
        expected = _generate(pipe)
    assert torch.equal(_generate_cached(pipe), expected)


@pytest.mark.integration("Layerwise casting + group offload")
@group_offload_works
@pytest.mark.usefixtures("unset_memory_is_nan")
def test_layerwise_casting_with_group_offload(tmp_path):
    alone = _pipeline()
    _layerwise(torch.bfloat16)(alone)
    expected = _generate_cached(alone)
    pipe = _pipeline()
    _layerwise(torch.bfloat16)(pipe)
    pipe.unet.enable_group_offload(CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    assert torch.equal(_generate_cached(pipe), expected)
