"""Graphs that are exported on demand and cached on disk."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.export import GraphDenoiser, cache_folder, export_graphs, load_graphs, use_runtime
from DeepCache.export.call import CallReader
from DeepCache.export.formats import FORMATS, GraphOptions
from DeepCache.export.writing import WantedGraph, traced
from DeepCache.runtime import RUNTIMES
from tests.engine.tiny_pipeline import tiny_pipeline, tiny_unet
from tests.export.runs import CALL, latents, least_unet

CONFIG = DeepCacheConfig(cache_interval=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPCACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch):
    """Names of the exported graphs, in the format of PyTorch, which is faster."""
    names = []
    torch_format = type(FORMATS["torch"])()
    torch_format.name = "openvino"
    save = torch_format.save

    def noted(program, path, *more):
        names.append(path.stem)
        save(program, path, *more)

    torch_format.save = noted
    monkeypatch.setitem(FORMATS, "openvino", torch_format)
    monkeypatch.setattr("DeepCache.runtime.require", lambda *_: None)
    return names


def pipeline(unet=None):
    return tiny_pipeline(least_unet() if unet is None else unet)


def test_next_pipeline_reuses_cached_graphs(made):
    expected = pipeline()
    apply_deepcache(expected, CONFIG)
    for _ in range(2):
        pipe = pipeline()
        use_runtime(pipe, "openvino", CONFIG)
        apply_deepcache(pipe, CONFIG)
        for _ in range(2):
            assert torch.equal(latents(pipe), latents(expected))
        assert made == ["full", "shallow"]


def test_other_sizes_export_other_graphs(made):
    pipe, config = pipeline(), DeepCacheConfig(cache_interval=3, guidance_reuse=True)
    own = pipeline()
    use_runtime(pipe, "openvino", config)
    for each in (pipe, own):
        apply_deepcache(each, config)
    assert torch.equal(latents(pipe), latents(own))
    assert made == ["full", "shallow"]
    assert torch.equal(latents(pipe, size=80), latents(own, size=80))
    assert made == ["full", "shallow"] * 2


def test_graphs_of_other_versions_are_exported_again(made, monkeypatch):
    for version in "1", "1", "2":
        monkeypatch.setattr(
            "DeepCache.export.writing.versions_of", lambda packages, version=version: {"torch": version}
        )
        pipe = pipeline()
        use_runtime(pipe, "openvino")
        latents(pipe)
    assert made == ["full", "full"]


@pytest.mark.parametrize("name", ["deepcache-graphs.json", "full.pt2"])
def test_damaged_graphs_are_exported_again(made, own_cache, name):
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    expected = latents(pipe)
    (path,) = own_cache.glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-40] + b"0" * 40)
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    assert torch.equal(latents(pipe), expected)
    assert made == ["full", "full"]


def changed_forward(unet):
    layer = unet.mid_block.resnets[0]
    forward = layer.forward
    layer.forward = lambda *args: 2 * forward(*args)


def with_hook(factor):
    return lambda unet: unet.mid_block.register_forward_hook(lambda module, args, output: factor * output)


def one_weight(unet):
    with torch.no_grad():
        unet.mid_block.resnets[0].conv1.weight[3, 1, 2, 0] += 1e-6


def adapter(unet, scale=1.0, disabled=False):
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    unet.set_adapters(["default"], [scale])
    if disabled:
        unet.disable_adapters()


CHANGES = {
    "nothing": lambda unet: None,
    "one weight": one_weight,
    "dtype": lambda unet: unet.to(torch.bfloat16),
    "FreeU": lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "other FreeU": lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.5),
    "LoRA": adapter,
    "LoRA, scaled": lambda unet: adapter(unet, 0.5),
    "a hook": with_hook(2),
    "a hook with the same code": with_hook(3),
    "another forward": changed_forward,
    "attention processors": lambda unet: unet.set_attn_processor(AttnProcessor()),
}


def hash_after(change):
    unet = tiny_unet()
    call = CallReader.of(unet)((torch.zeros(2, 4, 8, 8), 1), {"encoder_hidden_states": torch.zeros(2, 3, 8)})
    torch.manual_seed(0)
    change(unet)
    if unet.dtype != torch.float32:
        call = call._replace(tensors={name: each.to(unet.dtype) for name, each in call.tensors.items()})
    with traced(unet, 0, WantedGraph("full", call), GraphOptions("torch"), lambda text: None) as graph:
        return graph.key


def test_every_change_of_the_output_changes_the_key():
    keys = {name: hash_after(change) for name, change in CHANGES.items()}
    assert len({*keys.values()}) == len(keys), keys
    assert hash_after(lambda unet: None) == keys["nothing"]
    assert hash_after(lambda unet: adapter(unet, disabled=True)) not in keys.values()
    with torch.autocast("cpu", torch.bfloat16):
        assert hash_after(lambda unet: None) == keys["nothing"]


def test_graphs_have_the_weights_of_the_first_call(made):
    pipe, other = pipeline(), pipeline()
    unet = pipe.unet
    use_runtime(pipe, "openvino")
    for each in (unet, other.unet):
        with torch.no_grad():
            each.conv_out.weight.mul_(2)
    assert torch.equal(latents(pipe), latents(other))
    fresh = pipeline()
    use_runtime(fresh, "openvino")
    assert torch.equal(latents(fresh), latents(pipeline()))
    assert made == ["full", "full"]


def test_adapters_of_graphs_cannot_be_changed(made):
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    for change in (pipe.disable_lora, pipe.unload_lora_weights, pipe.fuse_lora):
        with pytest.raises(AttributeError, match="its graphs cannot be changed"):
            change()


def test_number_of_graphs_in_memory_is_limited(made, monkeypatch):
    monkeypatch.setattr("DeepCache.export.runtime._MOST_LOADED", 2)
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    for size in (64, 72, 80, 64):
        latents(pipe, size=size, num_inference_steps=1)
    assert made == ["full"] * 3
    assert len(pipe.unet._source[0]._graphs) == 2


def test_runtime_torch_restores_the_unet(made):
    pipe = pipeline()
    unet = pipe.unet
    use_runtime(pipe, "openvino", CONFIG)
    front = pipe.unet
    assert isinstance(front, GraphDenoiser)
    use_runtime(pipe, "openvino", CONFIG)
    assert pipe.unet is not front
    use_runtime(pipe, "openvino", DeepCacheConfig(cache_branch_id=1))
    assert pipe.unet.branch == 1
    use_runtime(pipe, "torch")
    assert pipe.unet is unet
    assert made == []


def test_invalid_pipelines_and_settings_are_refused(made, tmp_path):
    pipe = pipeline()
    with pytest.raises(ValueError, match="runtime must be one of torch, openvino, onnx, got 'tensorrt'"):
        use_runtime(pipe, "tensorrt")
    with pytest.raises(ValueError, match="compile='default' requires runtime torch, got 'openvino'"):
        use_runtime(pipe, "openvino", DeepCacheConfig(compile="default"))
    apply_deepcache(pipe)
    with pytest.raises(ValueError, match=r"Call remove_deepcache\(pipe\) first"):
        use_runtime(pipe, "openvino")
    remove_deepcache(pipe)
    with pytest.raises(ValueError, match="cache_branch_id must be between 0 and 1"):
        use_runtime(pipe, "openvino", DeepCacheConfig(cache_branch_id=9))
    export_graphs(pipe, tmp_path / "graphs", CALL(), format="torch")
    pipe.unet = load_graphs(tmp_path / "graphs")
    with pytest.raises(ValueError, match="the pipeline has exported graphs"):
        use_runtime(pipe, "openvino")


@pytest.mark.parametrize("name", RUNTIMES[1:])
def test_missing_runtime_names_its_extra(monkeypatch, name):
    monkeypatch.setattr("DeepCache.extras.why_missing", lambda extra: f"install 'DeepCache[{extra}]'")
    with pytest.raises(ImportError, match=rf"runtime {name} cannot be used here: install 'DeepCache\[{name}\]'"):
        use_runtime(pipeline(), name)


def test_cache_folder(monkeypatch, tmp_path, own_cache):
    assert cache_folder() == own_cache
    monkeypatch.delenv("DEEPCACHE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "deepcache"
