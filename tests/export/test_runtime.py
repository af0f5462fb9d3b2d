"""Graphs that are made when they are needed and kept on disk."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.export import GraphDenoiser, cache_folder, export_graphs, load_graphs, use_runtime
from DeepCache.export.formats import FORMATS
from DeepCache.export.identity import model_hash
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
    """Names of the graphs that are made; they are run by PyTorch, which is faster to make."""
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


def test_graphs_are_made_once_and_found_by_the_next_pipeline(made):
    expected = pipeline()
    apply_deepcache(expected, CONFIG)
    for _ in range(2):
        pipe = pipeline()
        use_runtime(pipe, "openvino", CONFIG)
        apply_deepcache(pipe, CONFIG)
        for _ in range(2):
            assert torch.equal(latents(pipe), latents(expected))
        assert made == ["full", "shallow"]


def test_another_size_takes_other_graphs_and_guidance_reuse_one_more(made):
    pipe, config = pipeline(), DeepCacheConfig(cache_interval=3, guidance_reuse=True)
    own = pipeline()
    use_runtime(pipe, "openvino", config)
    for each in (pipe, own):
        apply_deepcache(each, config)
    assert torch.equal(latents(pipe), latents(own))
    assert made == ["full", "shallow"]
    assert torch.equal(latents(pipe, size=80), latents(own, size=80))
    assert made == ["full", "shallow"] * 2


def test_graphs_of_other_versions_are_made_again_in_the_same_place(made, own_cache):
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    latents(pipe)
    (path,) = own_cache.glob("*/deepcache-graphs.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"key": "of other versions"}))
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    latents(pipe)
    assert made == ["full", "full"]
    assert json.loads(path.read_text())["key"] == values["key"]


@pytest.mark.parametrize("name", ["deepcache-graphs.json", "full.pt2"])
def test_damaged_graphs_are_made_again(made, own_cache, name):
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    expected = latents(pipe)
    (path,) = own_cache.glob(f"*/{name}")
    path.unlink()
    pipe = pipeline()
    use_runtime(pipe, "openvino")
    assert torch.equal(latents(pipe), expected)
    assert made == ["full", "full"]


def changes():
    def one_weight(unet):
        with torch.no_grad():
            unet.mid_block.resnets[0].conv1.weight[3, 1, 2, 0] += 1e-6

    def adapter(unet):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))

    def adapter_off(unet):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        unet.disable_adapters()

    return {
        "one weight": one_weight,
        "dtype": lambda unet: unet.to(torch.bfloat16),
        "FreeU": lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.4),
        "other FreeU": lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.5),
        "LoRA": adapter,
        "LoRA, disabled": adapter_off,
        "attention processors": lambda unet: unet.set_attn_processor(AttnProcessor()),
        "a hook": lambda unet: unet.mid_block.register_forward_hook(lambda module, args, output: 2 * output),
    }


def test_what_changes_the_output_changes_the_hash():
    hashes = {"": model_hash(tiny_unet())}
    for name, change in changes().items():
        unet = tiny_unet()
        torch.manual_seed(0)
        change(unet)
        hashes[name] = model_hash(unet)
    assert len({*hashes.values()}) == len(hashes), hashes
    assert model_hash(tiny_unet()) == hashes[""]


def test_back_to_pytorch(made):
    pipe, unet = pipeline(), None
    unet = pipe.unet
    use_runtime(pipe, "openvino", CONFIG)
    front = pipe.unet
    assert isinstance(front, GraphDenoiser)
    use_runtime(pipe, "openvino", CONFIG)
    assert pipe.unet is front
    use_runtime(pipe, "openvino", DeepCacheConfig(cache_branch_id=1))
    assert pipe.unet.branch == 1
    use_runtime(pipe, "torch")
    assert pipe.unet is unet
    assert made == []


def test_what_is_refused(made, tmp_path):
    pipe = pipeline()
    with pytest.raises(ValueError, match="runtime must be one of torch, openvino, onnx, got 'tensorrt'"):
        use_runtime(pipe, "tensorrt")
    with pytest.raises(ValueError, match="compile='default' is for PyTorch, and the runtime is openvino"):
        use_runtime(pipe, "openvino", DeepCacheConfig(compile="default"))
    apply_deepcache(pipe)
    with pytest.raises(ValueError, match=r"Call remove_deepcache\(pipe\) first"):
        use_runtime(pipe, "openvino")
    remove_deepcache(pipe)
    with pytest.raises(ValueError, match="cache_branch_id must be from 0 to 1"):
        use_runtime(pipe, "openvino", DeepCacheConfig(cache_branch_id=9))
    export_graphs(pipe, tmp_path / "graphs", CALL(), format="torch")
    pipe.unet = load_graphs(tmp_path / "graphs")
    with pytest.raises(ValueError, match="the pipeline has exported graphs"):
        use_runtime(pipe, "openvino")


@pytest.mark.parametrize("runtime", RUNTIMES[1:])
def test_a_missing_runtime_names_its_extra(monkeypatch, runtime):
    monkeypatch.setattr("DeepCache.extras.why_missing", lambda extra: f"install 'DeepCache[{extra}]'")
    with pytest.raises(ImportError, match=rf"runtime {runtime} cannot be used here: install 'DeepCache\[{runtime}\]'"):
        use_runtime(pipeline(), runtime)


def test_where_graphs_are_kept(monkeypatch, tmp_path, own_cache):
    assert cache_folder() == own_cache
    monkeypatch.delenv("DEEPCACHE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "deepcache"
