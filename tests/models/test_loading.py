from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

from DeepCache.models import MODELS, load_pipeline, random_pipeline, recommended_guidance, resolve_device


@pytest.mark.parametrize("model", ["shapes", "sdxl-tiny"])
def test_names_need_no_network(model, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pipe = load_pipeline(model, device="cpu")
    assert pipe.unet.dtype == torch.float32
    assert pipe.device.type == "cpu"
    assert model == "shapes" or pipe.tokenizer_2 is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "bf16", "torch.bfloat16", torch.bfloat16])
def test_dtype(dtype):
    assert load_pipeline("shapes", device="cpu", dtype=dtype).unet.dtype == torch.bfloat16


def test_a_name_takes_precedence_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert load_pipeline("shapes", device="cpu").unet is not None
    with pytest.raises(FileNotFoundError, match="model_index"):
        load_pipeline("./shapes")


def test_architectures_by_name(tmp_path, monkeypatch):
    pipe = load_pipeline("sd21-tiny", device="cpu", dtype="bf16")
    expected = random_pipeline("sd21-tiny", device="cpu", dtype="bf16").unet.state_dict()
    assert all(torch.equal(expected[name], weight) for name, weight in pipe.unet.state_dict().items())
    with pytest.raises(ValueError, match=r"'sd21-tiny' .* has no options, got variant, tokenizer"):
        load_pipeline("sd21-tiny", device="cpu", variant="fp16", tokenizer=None)

    monkeypatch.chdir(tmp_path)
    load_pipeline("shapes", device="cpu").save_pretrained("sd21-tiny")
    assert load_pipeline("sd21-tiny", device="cpu").unet.config != pipe.unet.config


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("shaps", r"did you mean shapes\?"),
        ("sdxl-tyni", r"did you mean sdxl-tiny\?"),
        ("toaster", r"give a name \(shapes; with random weights sd15, .*, each also as NAME-tiny\), a folder"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(model, message):
    with pytest.raises(ValueError, match=message):
        load_pipeline(model, device="cpu")


def test_paths_and_options(tmp_path):
    load_pipeline("shapes", device="cpu").save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, device="cpu", tokenizer=None)
    assert pipe.tokenizer is None


def test_an_unsupported_unet_is_refused(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, VQModel

    (tmp_path / "unet").mkdir()
    pipe = DDPMPipeline(unet=VQModel(block_out_channels=(8,), norm_num_groups=4), scheduler=DDPMScheduler())
    pipe.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="VQModel"):
        load_pipeline(tmp_path, device="cpu")


def test_guidance():
    pipe = load_pipeline("shapes", device="cpu")
    assert recommended_guidance("shapes", pipe) == MODELS["shapes"].guidance
    assert recommended_guidance("some/where", pipe) == 7.5


def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device() == resolve_device("auto")
    with pytest.raises(ValueError, match="'meta'"):
        resolve_device("meta")


def test_guidance_of_the_bundled_model_is_the_measured_one():
    results = Path(__file__).parents[2] / "training" / "results.json"
    if not results.exists():
        pytest.skip("the model has not been measured yet")
    assert MODELS["shapes"].guidance == json.loads(results.read_text(encoding="utf-8"))["recommended_guidance"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    load_pipeline("shapes", device="cpu").save_pretrained(folder)
    return folder


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def half(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (WEIGHTS, lambda _: b"x" * 100, r"'[^']*unet/diffusion_pytorch_model.safetensors' is damaged \(.*header"),
        (WEIGHTS, half, r"is damaged \(.*incomplete.*\)\. Download or save the model again\.$"),
        (WEIGHTS, None, r"'[^']*/unet' has no weights \(diffusion_pytorch_model.safetensors or .*\.bin\)\. Download"),
        ("unet/config.json", None, r"'[^']*/unet' has no config\.json\. Download"),
        ("unet/config.json", lambda _: b"{", r"unet/config.json' is damaged \(it is not JSON.*\)\. Download"),
        ("text_encoder/model.safetensors", lambda _: b"", r"text_encoder/model.safetensors' is damaged"),
    ],
)
def test_damaged_and_missing_files_are_named_once_with_the_cause(saved, tmp_path, name, change, message):
    shutil.copytree(saved, tmp_path / "model")
    path = tmp_path / "model" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(OSError, match=message) as caught:
        load_pipeline(tmp_path / "model", device="cpu")
    assert str(caught.value).count(Path(name).name) == 1


def test_files_of_another_variant_are_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(OSError, match=r"has no weights .*, only diffusion_pytorch_model.fp16.safetensors\."):
        load_pipeline(tmp_path / "model", device="cpu")
