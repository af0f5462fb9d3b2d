"""Replacement VAEs."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDPMPipeline, DDPMScheduler, UNet2DModel

from DeepCache.models import load_pipeline
from tests.models.images import image_of
from tests.models.small_vaes import save_kl, save_tiny


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("save", [save_tiny, save_kl])
def test_it_replaces_the_vae_of_the_pipeline(save, tmp_path):
    saved = save(tmp_path / "vae")
    pipe = load_pipeline("shapes", device="cpu", vae="vae")
    assert type(pipe.vae) is type(saved)
    expected = load_pipeline("shapes", device="cpu")
    expected.register_modules(vae=saved)
    assert np.array_equal(image_of(pipe), image_of(expected))
    assert not np.array_equal(image_of(pipe), image_of(load_pipeline("shapes", device="cpu")))


def test_it_gets_the_dtype_of_the_pipeline(tmp_path):
    save_tiny(tmp_path / "vae")
    assert load_pipeline("shapes", device="cpu", dtype="bfloat16", vae=tmp_path / "vae").vae.dtype == torch.bfloat16


def test_it_replaces_the_vae_of_an_architecture(tmp_path):
    save_tiny(tmp_path / "vae", levels=4)
    pipe = load_pipeline("sd15-tiny", device="cpu", vae="vae")
    assert isinstance(pipe.vae, AutoencoderTiny)
    assert image_of(pipe).shape == (64, 64, 3)


def test_a_loaded_vae_is_used_unchanged(tmp_path):
    vae = save_tiny(tmp_path / "vae")
    assert load_pipeline("shapes", device="cpu", vae=vae).vae is vae


def test_weights_of_the_replaced_vae_are_not_needed(tmp_path):
    load_pipeline("shapes", device="cpu").save_pretrained("model")
    (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    save_tiny(tmp_path / "vae")
    assert isinstance(load_pipeline("./model", device="cpu", vae="vae").vae, AutoencoderTiny)


def test_a_configuration_may_omit_defaults(tmp_path):
    vae = save_tiny(tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text(encoding="utf-8"))
    for name in ("latent_channels", "block_out_channels"):
        del config[name]
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_pipeline("shapes", device="cpu", vae="vae").vae.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in vae.state_dict().items())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "the VAE has no name; give a folder, or owner/name on the hub"),
        ("nowhere", FileNotFoundError, "there is no VAE folder 'nowhere'; give a folder, or owner/name on the hub"),
        ("./no/where", FileNotFoundError, r"there is no VAE folder '\./no/where'"),
        ("file", ValueError, "the VAE 'file' is a file; give the folder that holds its config.json"),
        ("empty", FileNotFoundError, r"the folder 'empty' is not a VAE of diffusers: it has no config\.json$"),
        ("model", FileNotFoundError, r"'model' is not a VAE .* no config\.json; its VAE is 'model/vae'"),
        ("model/unet", TypeError, r"'model/unet' is a UNet2DConditionModel, not a VAE\. Use one such as an Autoencod"),
        ("model/text_encoder", ValueError, "the config.json of the VAE 'model/text_encoder' does not name a class of"),
        ("wide", ValueError, r"'wide' does not fit: its latents have 16 channels, those of the model 4\. Use a VAE"),
        ("deep", ValueError, r"'deep' does not fit: its images are 8 times as wide as .*, those of the model 4 times"),
        ("damaged", OSError, r"cannot load the VAE 'damaged': '[^']*model\.safetensors' is damaged \(.*Download or"),
        (
            "others",
            OSError,
            r"cannot load the VAE 'others': its weights are not those of its config\.json, \S+ is missing\.",
        ),
        ("garbled", ValueError, "the config.json of the VAE 'garbled' is not JSON"),
        ("unknown", ValueError, "the VAE 'unknown' is a AutoencoderOfTomorrow, which diffusers .* does not have"),
        ("hollow", OSError, r"cannot load the VAE 'hollow': the folder '[^']*hollow' has no weights"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused(name, error, message, tmp_path):
    load_pipeline("shapes", device="cpu").save_pretrained("model")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    save_tiny(tmp_path / "wide", latent_channels=16)
    save_kl(tmp_path / "deep", levels=4)
    save_tiny(tmp_path / "hollow")
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / "hollow" / weights).unlink()
    for other in ("damaged", "others", "garbled", "unknown"):
        save_tiny(tmp_path / other)
    (tmp_path / "damaged" / weights).write_bytes(b"x" * 100)
    shutil.copy(tmp_path / "model" / "unet" / weights, tmp_path / "others" / weights)
    (tmp_path / "garbled" / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "unknown" / "config.json").write_text('{"_class_name": "AutoencoderOfTomorrow"}', encoding="utf-8")
    with pytest.raises(error, match=message):
        load_pipeline("shapes", device="cpu", vae=name)


def test_a_pipeline_without_vae_is_refused(tmp_path):
    save_tiny(tmp_path / "vae")
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained("pixels")
    with pytest.raises(ValueError, match="'pixels' is a DDPMPipeline, which has no VAE that could be replaced"):
        load_pipeline("pixels", device="cpu", vae="vae")


def test_the_hub_gets_one_request(monkeypatch):
    from huggingface_hub import HfApi

    asked = []

    def model_info(self, name, **_):
        asked.append(name)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="model_index.json")])

    monkeypatch.setattr(HfApi, "model_info", model_info)
    with pytest.raises(ValueError, match=r"the hub's 'owner/name' is not a VAE of diffusers: .* config\.json"):
        load_pipeline("shapes", device="cpu", vae="owner/name")
    assert asked == ["owner/name"]


def test_a_cached_repository_loads_offline(tmp_path, monkeypatch):
    from huggingface_hub import HfApi, constants

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OSError, match=r"no folder 'owner/name', and the hub cannot be asked for it \(no route to host"):
        load_pipeline("shapes", device="cpu", vae="owner/name")
    repository = tmp_path / "cache" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    saved = save_tiny(repository / "snapshots" / ("0" * 40))
    weights = load_pipeline("shapes", device="cpu", vae="owner/name").vae.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in saved.state_dict().items())
