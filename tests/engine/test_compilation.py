"""`compile=`: DeepCache compiles the U-Net.

Except in one test, graphs run as they were traced, so that the output is bit-identical to that without compiling.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache
from DeepCache.engine.call_guard import CallGuard
from DeepCache.engine.compilation import is_compiled, static_timestep
from DeepCache.schedule import BranchSchedule, UniformSchedule
from tests.engine.backend import use_backend
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.overwriting_graphs import OverwritingGraphs
from tests.engine.tiny_pipeline import generate, small_unet, tiny_pipeline
from tests.releases import COMPILES, COMPILES_AGAIN

pytestmark = [
    COMPILES,
    pytest.mark.usefixtures("nothing_is_counted"),
    # Torch's own, when inductor is imported.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
    # Diffusers' schedulers, with numpy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that are built."""
    return use_backend(monkeypatch, CompileCounter())


def _pipeline():
    """Small, since tracing takes longer than running."""
    return tiny_pipeline(small_unet())


def _config(**settings):
    return DeepCacheConfig(**{"cache_interval": 3, "forecast": "none", "compile": "default"} | settings)


def _uncompiled(config, **call):
    pipe = _pipeline()
    apply_deepcache(pipe, DeepCacheConfig(**{**vars(config), "compile": "none"}))
    return generate(pipe, **call)


@pytest.mark.integration("torch.compile", "by DeepCache: `compile=`")
def test_there_are_two_whole_graphs_for_any_run(graphs):
    pipe = _pipeline()
    engine = apply_deepcache(pipe, _config())
    assert torch.equal(generate(pipe), _uncompiled(_config()))
    assert graphs.frame_count == 2
    for call in ({"seed": 1}, {"steps": 9}, {"guidance_scale": 3.0}, {"guidance_rescale": 0.5}):
        assert torch.equal(generate(pipe, **call), _uncompiled(_config(), **call))
    assert graphs.frame_count == 2
    assert engine.stats.pattern == "F..F.."


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, PNDMScheduler, DPMSolverMultistepScheduler])
def test_another_scheduler_takes_no_other_graphs(kind, graphs):
    """Euler's timesteps are float32, the others' int64."""
    pipe, alone = _pipeline(), _pipeline()
    apply_deepcache(pipe, _config())
    apply_deepcache(alone, _config(compile="none"))
    generate(pipe)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    alone.scheduler = kind.from_config(alone.scheduler.config)
    assert torch.equal(generate(pipe), generate(alone))
    assert graphs.frame_count == 2


def test_the_second_size_takes_two_graphs_and_the_third_none(graphs):
    pipe = _pipeline()
    apply_deepcache(pipe, _config())
    generate(pipe)
    for size in (128, 96, 64):
        assert torch.equal(generate(pipe, size=size), _uncompiled(_config(), size=size))
        assert graphs.frame_count == 4
    generate(pipe, batch=2)
    built = graphs.frame_count
    assert torch.equal(generate(pipe, batch=3), _uncompiled(_config(), batch=3))
    assert graphs.frame_count == built


def test_timesteps_that_are_numbers_are_not_compiled_in(graphs):
    unet = small_unet()
    expected, pipe = Pipeline(unet), Pipeline(small_unet())
    apply_deepcache(expected, _config(compile="none"))
    apply_deepcache(pipe, _config())
    sample, prompt = torch.ones(1, 4, 8, 8), torch.ones(1, 3, 8)
    with torch.no_grad():
        for timestep in (10, 20.0, 30, 40.0, 50, 60.0, 70):
            found = pipe.unet(sample, timestep, encoder_hidden_states=prompt)[0]
            assert torch.equal(found, expected.unet(sample, timestep, encoder_hidden_states=prompt)[0])
    assert graphs.frame_count == 2


def test_the_timestep_of_a_graph():
    unet, sample = small_unet(), torch.zeros(1)
    listed = torch.tensor([900, 600, 300])
    for timestep in (600, 600.0, listed[1], listed[1].expand(2), torch.tensor(600.0)):
        steady = static_timestep(timestep, unet, sample)
        assert (steady.dtype, steady.storage_offset(), steady.flatten()[0].item()) == (torch.float32, 0, 600.0)
    # Others look up their timesteps in a table.
    learned = UNet2DModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        time_embedding_type="learned",
        num_train_timesteps=1000,
    )
    for other in (DummyUNet(), learned):
        assert static_timestep(listed[1], other, sample).dtype == torch.int64


@COMPILES_AGAIN
def test_disable_and_enable_compile_nothing_again(graphs):
    pipe = _pipeline()
    plain = generate(pipe)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(3, compile="default")
    helper.enable()
    cached = generate(pipe)
    helper.disable()
    assert not is_compiled(pipe.unet)
    assert "_compiled_call_impl" not in vars(pipe.unet)
    assert torch.equal(generate(pipe), plain)
    helper.enable()
    assert torch.equal(generate(pipe), cached)
    assert graphs.frame_count == 2


def test_another_branch_is_compiled_and_another_interval_or_forecast_is_not(graphs):
    pipe = _pipeline()
    engine = apply_deepcache(pipe, _config())
    generate(pipe)
    for other in (_config(cache_interval=2), _config(forecast="linear"), _config(skip_mode="non-uniform")):
        engine.configure(other)
        assert torch.equal(generate(pipe), _uncompiled(other))
    assert graphs.frame_count == 2
    other = _config(cache_branch_id=1)
    engine.configure(other)
    assert torch.equal(generate(pipe), _uncompiled(other))
    assert graphs.frame_count == 4
    engine.configure(_config(compile="none"))
    assert not is_compiled(pipe.unet)


def test_without_caching_it_is_the_unet_compiled(graphs):
    pipe = _pipeline()
    plain = generate(pipe)
    apply_deepcache(pipe, _config(cache_interval=1))
    assert torch.equal(generate(pipe), plain)
    assert graphs.frame_count == 1


def test_a_copied_pipeline_is_compiled_too(graphs):
    pipe = _pipeline()
    apply_deepcache(pipe, _config())
    expected = generate(pipe)
    other = copy.deepcopy(pipe)
    generate(other)
    assert is_compiled(other.unet)
    assert torch.equal(generate(other), expected)
    remove_deepcache(other)
    assert not is_compiled(other.unet)
    assert is_compiled(pipe.unet)
    assert pickle.loads(pickle.dumps(pipe.unet)).state_dict().keys() == pipe.unet.state_dict().keys()


def test_two_compilations_are_refused(graphs):
    pipe = _pipeline()
    pipe.unet = torch.compile(pipe.unet)
    with pytest.raises(ValueError, match="compile='default' and the U-Net is compiled already"):
        apply_deepcache(pipe, _config())
    engine = apply_deepcache(pipe, _config(compile="none"))
    with pytest.raises(ValueError, match="remove one of the two"):
        engine.configure(_config())
    assert torch.equal(generate(pipe), _uncompiled(_config()))


def test_compiled_by_the_user_afterwards(graphs):
    pipe = _pipeline()
    apply_deepcache(pipe, _config())
    pipe.unet = torch.compile(pipe.unet)
    assert torch.equal(generate(pipe), _uncompiled(_config()))
    assert graphs.frame_count == 2


class TestCudaGraphs:
    @pytest.mark.parametrize(
        "config",
        [
            _config(compile="reduce-overhead"),
            _config(compile="max-autotune", forecast="linear"),
            _config(compile="reduce-overhead", cache_interval=2, forecast="quadratic", guidance_reuse=True),
            _config(
                compile="reduce-overhead", forecast="linear", schedule=BranchSchedule(UniformSchedule(3), after=(1, 0))
            ),
        ],
        ids=["re-use", "linear", "guidance reuse", "two branches"],
    )
    def test_no_stored_tensor_is_in_memory_that_a_graph_writes(self, config, monkeypatch):
        expected = [_uncompiled(config, seed=seed) for seed in (0, 1)]
        backend = use_backend(monkeypatch, OverwritingGraphs())
        pipe = _pipeline()
        apply_deepcache(pipe, config)
        for seed in (0, 1):
            assert torch.equal(generate(pipe, seed=seed), expected[seed])
        assert backend.overwritten

    @pytest.mark.parametrize("interval", [1, 3])
    def test_the_calls_of_a_step_each_keep_their_output(self, interval, monkeypatch):
        """A pipeline that calls its U-Net separately with and without the prompt, and combines the two."""
        pipe = Pipeline(small_unet())
        inputs = torch.ones(1, 4, 8, 8), torch.ones(1, 3, 8), torch.zeros(1, 3, 8)

        def run():
            sample, prompt, negative = inputs
            for timestep in pipe.scheduler.timesteps:
                with torch.no_grad():
                    both = [pipe.unet(sample, timestep, encoder_hidden_states=each)[0] for each in (prompt, negative)]
                sample = sample - 0.1 * (3 * both[0] - 2 * both[1])
            return sample

        apply_deepcache(pipe, _config(cache_interval=interval, compile="none"))
        expected = run()
        use_backend(monkeypatch, OverwritingGraphs())
        apply_deepcache(pipe, _config(cache_interval=interval, compile="reduce-overhead"))
        assert torch.equal(run(), expected)

    def test_in_inference_mode_and_then_without(self, monkeypatch):
        use_backend(monkeypatch, OverwritingGraphs())
        pipe = _pipeline()
        apply_deepcache(pipe, _config(compile="reduce-overhead"))
        with torch.inference_mode():
            generate(pipe)
        assert torch.equal(generate(pipe), _uncompiled(_config()))

    @pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "in place"])
    def test_compiled_by_the_user(self, wrapped, monkeypatch):
        use_backend(monkeypatch, OverwritingGraphs())
        pipe = _pipeline()
        apply_deepcache(pipe, _config(compile="none", forecast="linear"))
        if wrapped:
            pipe.unet = torch.compile(pipe.unet)
        else:
            pipe.unet.compile()
        assert torch.equal(generate(pipe), _uncompiled(_config(forecast="linear")))

    def test_without_a_cuda_device_it_warns_once_and_runs_without_them(self, graphs, caplog):
        pipe = _pipeline()
        apply_deepcache(pipe, _config(compile="reduce-overhead"))
        for seed in (0, 1):
            assert torch.equal(generate(pipe, seed=seed), _uncompiled(_config(), seed=seed))
        assert [record.getMessage() for record in caplog.records if "CUDA graphs" in record.message] == [
            "compile='reduce-overhead' works without CUDA graphs (as 'default'): the U-Net is on the cpu, and CUDA "
            "graphs need a CUDA device"
        ]

    @COMPILES_AGAIN
    def test_offloaded_weights_cannot_be_captured(self, monkeypatch, caplog):
        # The compiler does not look into accelerate's hooks.
        use_backend(monkeypatch, "eager", fullgraph=False)
        pipe = _pipeline()
        cpu_offload(pipe.unet, execution_device="cpu")
        apply_deepcache(pipe, _config(compile="max-autotune", cache_interval=1))
        assert torch.equal(generate(pipe), generate(_pipeline()))
        assert "as 'max-autotune-no-cudagraphs'): hooks of accelerate" in caplog.text


class TestRegional:
    def test_the_transformer_blocks_alone_are_compiled(self, graphs):
        expected, pipe = tiny_pipeline(), tiny_pipeline()
        plain = generate(expected)
        apply_deepcache(expected, _config(compile="none"))
        apply_deepcache(pipe, _config(compile="regional"))
        assert torch.equal(generate(pipe), generate(expected))
        built = graphs.frame_count
        assert built
        calls = {type(module).__name__: module._compiled_call_impl for module in pipe.unet.modules()}
        compiled = {kind for kind, call in calls.items() if call is not None and not isinstance(call, CallGuard)}
        assert compiled == {"BasicTransformerBlock"}
        assert torch.equal(generate(pipe, seed=1), generate(expected, seed=1))
        assert graphs.frame_count == built
        remove_deepcache(pipe)
        assert not is_compiled(pipe.unet)
        assert torch.equal(generate(pipe), plain)

    def test_a_unet_without_any_is_refused(self):
        pipe = Pipeline(DummyUNet())
        with pytest.raises(ValueError, match="this DummyUNet has none; compile='default' compiles all of it"):
            apply_deepcache(pipe, _config(compile="regional"))


def test_inductor_compiles_and_runs_both_graphs():
    pipe = _pipeline()
    counters.clear()
    apply_deepcache(pipe, _config())
    found = generate(pipe)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    torch.testing.assert_close(found, _uncompiled(_config()), rtol=1e-3, atol=1e-3)
    generate(pipe, seed=1)
    assert counters["stats"]["unique_graphs"] == 2


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"compile must be one of 'none', 'regional', 'default'.*got 'fast'"):
        DeepCacheConfig(compile="fast")


def test_the_compiler_sees_a_separate_class_for_each_kind_of_step():
    """Its guards check the class of the U-Net first, so those of other steps fail at once."""
    pipe = _pipeline()
    kind, seen = type(pipe.unet), []
    apply_deepcache(pipe, _config(compile="none"))
    pipe.unet.conv_in.register_forward_hook(lambda *_: seen.append(type(pipe.unet)))
    generate(pipe)
    full, shallow = seen[0], seen[1]
    assert seen == [full, shallow, shallow] * 2
    assert len({kind, full, shallow}) == 3
    assert all(issubclass(each, UNet2DConditionModel) and each.__name__ == kind.__name__ for each in seen)
    assert type(pipe.unet) is kind


@pytest.mark.parametrize("cached_first", [True, False])
def test_the_graphs_of_another_pipeline_are_not_used(cached_first, graphs):
    """Its U-Net has the same code, and is compiled without DeepCache or for another branch."""
    others = [_pipeline(), _pipeline()]
    apply_deepcache(others[1], _config(compile="none", cache_branch_id=1))
    for other in others:
        other.unet.compile()
    pipe = _pipeline()
    if cached_first:
        apply_deepcache(pipe, _config())
    expected = [generate(other) for other in others]
    if not cached_first:
        apply_deepcache(pipe, _config())
    assert torch.equal(generate(pipe), _uncompiled(_config()))
    assert [torch.equal(generate(other), before) for other, before in zip(others, expected, strict=True)] == [
        True,
        True,
    ]


def test_a_compiled_forward_counts_as_compiled(graphs):
    pipe = _pipeline()
    assert not is_compiled(pipe.unet)
    pipe.unet.forward = torch.compile(pipe.unet.forward)
    assert is_compiled(pipe.unet)
    apply_deepcache(pipe, _config(compile="none"))
    assert torch.equal(generate(pipe), _uncompiled(_config()))
    assert graphs.frame_count == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    def test_captured_and_not_captured_give_the_same_image(self):
        images = {}
        for mode in ("default", "reduce-overhead"):
            torch.compiler.reset()
            pipe = _pipeline().to("cuda")
            apply_deepcache(pipe, _config(compile=mode, forecast="linear"))
            images[mode] = [generate(pipe, seed=seed) for seed in (0, 1, 0)]
        for captured, uncaptured in zip(images["reduce-overhead"], images["default"], strict=True):
            assert torch.equal(captured, uncaptured)
        assert torch.equal(images["reduce-overhead"][0], images["reduce-overhead"][2])

    @pytest.mark.parametrize("mode", ["none", "default", "reduce-overhead"])
    def test_no_shallow_step_waits_for_the_device(self, mode):
        pipe = Pipeline(small_unet().to("cuda"))
        pipe.scheduler = DDIMScheduler()
        config = DeepCacheConfig(3, forecast="linear", guidance_reuse=True, compile=mode)
        engine = apply_deepcache(pipe, config)
        sample = torch.ones(2, 4, 8, 8, device="cuda")
        prompt = torch.randn(2, 3, 8, device="cuda")
        for run in range(4):
            pipe.scheduler.set_timesteps(9, device="cuda")
            for number, timestep in enumerate(pipe.scheduler.timesteps):
                shallow = run == 3 and number % 3
                torch.cuda.set_sync_debug_mode("error" if shallow else "default")
                try:
                    with torch.no_grad():
                        pipe.unet(sample, timestep, encoder_hidden_states=prompt)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        assert engine.stats.pattern == "F..F..F.."
