"""Pipelines from checkpoints in the original layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from DeepCache.engine.fingerprint import scheduler_settings
from DeepCache.models import ARCHITECTURES, CONFIGURATIONS, MODELS, load_pipeline, load_without_weights, random_pipeline
from DeepCache.models.checkpoint import checkpoint_configuration
from DeepCache.models.configurations import written
from tests.models.images import image_of
from tests.models.original_layout import checkpoint_of, save_checkpoint, save_header

FULL = [name for name in CONFIGURATIONS if not name.endswith("-tiny")]
SHAPES = str(MODELS["shapes"].folder)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "shapes.safetensors"
    save_checkpoint(load_pipeline("shapes", device="cpu"), path)
    return path


def weights_of(name):
    """Names and shapes of a published model's checkpoint."""
    with written(CONFIGURATIONS[name]) as folder:
        return checkpoint_of(load_without_weights(folder))


def with_tokenizers(pipe, of):
    """A pipeline of random weights with the tokenizers of another one: its own are those of the bundled model."""
    pipe.register_modules(**{name: part for name, part in of.components.items() if name.startswith("tokenizer")})
    return pipe


def chosen(path, config=None):
    """The index of the configuration that a file gets, with that of its scheduler."""
    with checkpoint_configuration(path, path.name, config, given=None) as folder:
        return {
            "_class_name": json.loads((folder / "model_index.json").read_text())["_class_name"],
            "scheduler": json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
            "unet": json.loads((folder / "unet" / "config.json").read_text()),
        }


@pytest.mark.parametrize("name", [name for name in FULL if name != "sd21-base"])
def test_published_models_are_recognised_by_their_layers(tmp_path, name):
    path = tmp_path / "model.safetensors"
    save_header(weights_of(name), path)
    found, expected = chosen(path), CONFIGURATIONS[name]
    assert found["_class_name"] == expected.pipeline
    assert found["scheduler"].items() >= expected.scheduler.config.items()
    assert found["scheduler"]["_class_name"] == expected.scheduler.kind
    pipe = load_without_weights(path)
    with written(expected) as folder:
        assert dict(load_without_weights(folder).unet.config) == dict(pipe.unet.config)


def test_stable_diffusion_2_for_512_pixels_needs_config_or_metadata(tmp_path):
    weights = weights_of("sd21-base")
    for name, notes in (("plain", {}), ("noted", {"modelspec.prediction_type": "epsilon"})):
        save_header(weights, tmp_path / name, **notes)
        (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
    plain, noted = tmp_path / "plain.safetensors", tmp_path / "noted.safetensors"
    assert chosen(plain)["scheduler"]["prediction_type"] == "v_prediction"
    for found in (chosen(plain, "sd21-base"), chosen(noted)):
        assert found["scheduler"]["_class_name"] == "PNDMScheduler"
        assert found["scheduler"]["prediction_type"] == "epsilon"
        assert found["unet"]["sample_size"] == 64


def test_sdxl_that_predicts_the_velocity_is_recognised(tmp_path):
    path, weights = tmp_path / "model.safetensors", weights_of("sdxl")
    save_header(weights | {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, path)
    scheduler = chosen(path)["scheduler"]
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    save_header(weights, path, **{"modelspec.prediction_type": "v"})
    assert chosen(path)["scheduler"]["prediction_type"] == "v_prediction"
    save_header(weights, path)
    assert chosen(path)["scheduler"]["prediction_type"] == "epsilon"


def test_configurations_are_the_published_ones():
    def unet(name):
        with written(CONFIGURATIONS[name]) as folder:
            return load_without_weights(folder).unet.config

    assert {name: CONFIGURATIONS[name].scheduler.kind for name in FULL} == {
        "sd15": "PNDMScheduler",
        "sd15-inpainting": "DDIMScheduler",
        "sd21": "DDIMScheduler",
        "sd21-base": "PNDMScheduler",
        "sd2-inpainting": "PNDMScheduler",
        **dict.fromkeys(
            ("sdxl", "sdxl-refiner", "sdxl-inpainting", "ssd-1b", "segmind-vega"), "EulerDiscreteScheduler"
        ),
    }
    assert {name for name in FULL if unet(name).in_channels == 9} == {name for name in FULL if "inpainting" in name}
    assert unet("sd21").upcast_attention
    assert not unet("sd21-base").upcast_attention


def test_weights_and_image_are_bit_identical(shapes):
    pipe, expected = load_pipeline(shapes, config="shapes", device="cpu"), load_pipeline("shapes", device="cpu")
    for part in ("unet", "text_encoder", "vae"):
        here, there = (getattr(each, part).state_dict() for each in (pipe, expected))
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in there)
    assert np.array_equal(image_of(pipe), image_of(expected))


@pytest.mark.parametrize("name", ["sd15-tiny", "sd21-tiny"])
def test_architectures_round_trip(tmp_path, name):
    expected = random_pipeline(name, device="cpu", dtype="float32")
    save_checkpoint(expected, tmp_path / "model.safetensors")
    pipe = load_pipeline("model.safetensors", config=name, device="cpu")
    assert scheduler_settings(pipe.scheduler) == scheduler_settings(expected.scheduler)
    assert np.array_equal(image_of(pipe), image_of(with_tokenizers(expected, pipe)))


def test_sdxl_round_trip(tmp_path, monkeypatch):
    tiny = ARCHITECTURES["sdxl-tiny"]
    encoder, unet = tiny.networks["text_encoder_2"], tiny.networks["unet"]
    # Diffusers distinguishes the two text encoders by their widths.
    wider = {"hidden_size": 64, "projection_dim": 64}
    conditions = {"cross_attention_dim": 32 + 64, "projection_class_embeddings_input_dim": 6 * 8 + 64}
    networks = tiny.networks | {
        "text_encoder_2": replace(encoder, config=encoder.config | wider),
        "unet": replace(unet, config=unet.config | conditions),
    }
    monkeypatch.setitem(ARCHITECTURES, "sdxl-tiny", replace(tiny, networks=networks))
    expected = random_pipeline("sdxl-tiny", device="cpu", dtype="float32")
    save_checkpoint(expected, tmp_path / "model.safetensors")
    with written(ARCHITECTURES["sdxl-tiny"]) as folder:
        pipe = load_pipeline("model.safetensors", config=folder, device="cpu")
    for part in ("unet", "text_encoder", "text_encoder_2", "vae"):
        here, there = (getattr(each, part).state_dict() for each in (pipe, expected))
        assert all(torch.equal(here[name], there[name]) for name in there)
    # The last bits of some matrix products depend on the memory layout of the weights.
    difference = image_of(pipe).astype(int) - image_of(with_tokenizers(expected, pipe))
    assert abs(difference).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_kept(shapes, tmp_path, dtype):
    expected = load_pipeline("shapes", device="cpu", dtype=dtype).unet.state_dict()
    save_file({name: weight.to(dtype) for name, weight in load_file(shapes).items()}, tmp_path / "half.safetensors")
    for path in (shapes, tmp_path / "half.safetensors"):
        pipe = load_pipeline(path, config="shapes", device="cpu", dtype=dtype)
        assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {dtype}
        assert all(torch.equal(expected[name], weight) for name, weight in pipe.unet.state_dict().items())


def test_a_configuration_may_be_a_folder_without_weights(shapes, tmp_path):
    shutil.copytree(SHAPES, tmp_path / "model")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    assert load_pipeline(shapes, config="model", device="cpu").unet.dtype == torch.float32
    assert load_without_weights(shapes, config=tmp_path / "model").unet.device.type == "meta"


def test_loading_without_weights_needs_no_vae(tmp_path):
    path = tmp_path / "model.safetensors"
    save_header({name: w for name, w in weights_of("sd15").items() if not name.startswith("first_stage")}, path)
    assert load_without_weights(path).unet.config.cross_attention_dim == 768


def test_missing_components_are_required_as_arguments(shapes, tmp_path):
    weights = load_file(shapes)
    without = {name: weight for name, weight in weights.items() if not name.startswith("first_stage")}
    save_file(without, tmp_path / "no-vae.safetensors")
    with pytest.raises(ValueError, match=r"'no-vae.safetensors' has no VAE in it. Give one with vae \(--vae\)"):
        load_pipeline("no-vae.safetensors", config="shapes", device="cpu")
    pipe = load_pipeline("no-vae.safetensors", config="shapes", device="cpu", vae=f"{SHAPES}/vae")
    assert np.array_equal(image_of(pipe), image_of(load_pipeline("shapes", device="cpu")))

    without = {name: weight for name, weight in weights.items() if not name.startswith("cond_stage")}
    save_file(without, tmp_path / "no-text.safetensors")
    with pytest.raises(ValueError, match=r"'no-text\.safetensors' has no text encoder in it"):
        load_pipeline("no-text.safetensors", config="shapes", device="cpu")
    encoder = load_pipeline("shapes", device="cpu").text_encoder
    pipe = load_pipeline("no-text.safetensors", config="shapes", device="cpu", text_encoder=encoder)
    assert pipe.text_encoder is encoder

    name = "first_stage_model.decoder.conv_in.weight"
    save_file({each: weight for each, weight in weights.items() if each != name}, tmp_path / "less.safetensors")
    with pytest.raises(
        ValueError, match=r"'less\.safetensors' does not fit .* 'shapes': its VAE has no decoder\.conv_in\.weight"
    ):
        load_pipeline("less.safetensors", config="shapes", device="cpu")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], r"a LoRA\. Give it as --lora\."),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "a LoRA"),
        (["control_model.time_embed.0.weight"], r"a ControlNet\. The file must be a complete checkpoint"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "Flux, which has a transformer and no U-Net"),
        (["joint_blocks.37.x_block.mlp.fc1.weight"], "Stable Diffusion 3.5"),
        (["first_stage_model.encoder.conv_in.weight"], "a VAE"),
        (["decoder.conv_in.weight"], "a VAE"),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder"),
        (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "a U-Net without the rest"),
        (["emb_params"], "a textual inversion"),
        (["weight"], "has no U-Net that is known"),
        ([], "has no U-Net that is known"),
    ],
)
def test_other_files_are_named(tmp_path, names, what):
    save_header({name: torch.empty(2, 2) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(TypeError, match=f"'other.safetensors' .*{what}"):
        load_pipeline("other.safetensors", device="cpu")


def test_other_models_with_a_unet_are_named(tmp_path):
    unet = {"model.diffusion_model.input_blocks.0.0.weight": torch.empty(320, 8, 3, 3)}
    texts = {"cond_stage_model.transformer.x": torch.empty(1), "first_stage_model.x": torch.empty(1)}
    save_header(unet | texts, tmp_path / "pix2pix.safetensors")
    with pytest.raises(TypeError, match=r"is InstructPix2Pix, whose configuration .* \(--config\)"):
        load_pipeline("pix2pix.safetensors", device="cpu")
    save_header(
        unet | texts | {"model.diffusion_model.input_blocks.1.0.time_stack.x": torch.empty(1)},
        tmp_path / "svd.safetensors",
    )
    with pytest.raises(TypeError, match="Stable Video Diffusion"):
        load_pipeline("svd.safetensors", device="cpu")


def test_unknown_layers_need_a_configuration(shapes):
    with pytest.raises(
        ValueError, match=r"other layers than the published ones \(as sd15, conv_in.weight of its U-Net"
    ):
        load_pipeline(shapes, device="cpu")
