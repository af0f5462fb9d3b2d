"""Offloading and a VAE that decodes in parts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.models import divide_vae, load_pipeline, memory, offload_pipeline
from DeepCache.models.device import execution_device
from DeepCache.models.memory import OFFLOADS, check_offload, load_to_offload, vae_notes


def sequentially(pipe, device=None):
    """What diffusers does, without a device number, which a CPU does not have."""
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            cpu_offload(component, torch.device("cpu"), offload_buffers=len(component._parameters) > 0)


@pytest.fixture
def accelerator(monkeypatch):
    """Offloads to and from the CPU."""
    monkeypatch.setattr(memory, "offload_device", lambda offload, device=None: torch.device("cpu"))
    monkeypatch.setattr(DiffusionPipeline, "enable_sequential_cpu_offload", sequentially)


def generate(pipe, interval, size=64):
    pipe.set_progress_bar_config(disable=True)
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=interval))
    image = pipe(
        "a red circle", num_inference_steps=4, width=size, height=size, generator=torch.Generator().manual_seed(0)
    ).images[0]
    return np.asarray(image), engine.stats.pattern


@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_pipeline_generates_the_same_images(accelerator, offload):
    plain = load_pipeline("shapes", device="cpu")
    pipe = load_pipeline("shapes", offload=offload)
    layers = (pipe.unet, pipe.unet.conv_in)
    assert any(hasattr(layer, "_diffusers_hook" if offload == "group" else "_hf_hook") for layer in layers)
    assert pipe.unet.conv_in.weight.is_meta is (offload == "sequential")
    assert execution_device(pipe).type == "cpu"
    for interval, pattern in ((1, "FFFF"), (3, "F..F")):
        image, found = generate(pipe, interval)
        expected, _ = generate(plain, interval)
        assert found == pattern
        assert np.array_equal(image, expected)


def test_groups_are_layers_that_devices_with_streams_copy_ahead(monkeypatch):
    called = {}
    pipe = load_pipeline("shapes", device="cpu")
    monkeypatch.setattr(type(pipe), "enable_group_offload", lambda self, device, **options: called.update(options))
    for device, streams in (("cuda", True), ("mps", False)):
        monkeypatch.setattr(memory, "resolve_device", lambda _, device=device: torch.device(device))
        offload_pipeline(pipe, "group")
        assert called == {"offload_type": "leaf_level", "use_stream": streams, "record_stream": streams}


def test_the_dtype_is_that_of_the_device_without_a_warning_about_the_cpu(monkeypatch):
    monkeypatch.setattr(memory, "offload_device", lambda offload, device=None: torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = load_to_offload("shapes", "model")
    assert (pipe.dtype, pipe.device.type) == (torch.float16, "cpu")


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_to_the_cpu_needs_another_device(offload, monkeypatch):
    message = f"offload='{offload}' needs a GPU, and the device is cpu. Remove it"
    pipe = load_pipeline("shapes", device="cpu")
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", None)
    for call in (
        lambda: offload_pipeline(pipe, offload, "cpu"),
        lambda: load_pipeline("shapes", device="cpu", offload=offload),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_pipeline_without_an_offload_order_is_refused(accelerator, monkeypatch):
    pipe = load_pipeline("shapes", device="cpu")
    monkeypatch.setattr(type(pipe), "model_cpu_offload_seq", None)
    with pytest.raises(ValueError, match=r"cannot offload this StableDiffusionPipeline \(offload='model'\): "):
        offload_pipeline(pipe, "model")


def test_offloading_requires_accelerate(monkeypatch):
    from importlib import metadata

    from DeepCache import extras

    def version(name):
        if name == "accelerate":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr(extras, "version", version)
    with pytest.raises(ImportError, match=r"offload='group' cannot be used here: it needs accelerate: pip install"):
        memory.offload_device("group", "cpu")


def test_unknown_and_incompatible_offloading_is_refused():
    for offload in (None, *OFFLOADS):
        check_offload(offload)
    check_offload(None, "onnx")
    with pytest.raises(ValueError, match="offload must be one of model, sequential, group, got 'disk'"):
        load_pipeline("shapes", offload="disk")
    with pytest.raises(
        ValueError, match=r"offload='model' cannot be combined with the runtime 'onnx'. Remove one of them"
    ):
        check_offload("model", "onnx")


def test_tiling_and_slicing_keep_small_images():
    whole = load_pipeline("shapes", device="cpu")
    pipe = load_pipeline("shapes", device="cpu")
    divide_vae(pipe)
    assert vae_notes(pipe) == {}
    divide_vae(pipe, slicing=True)
    assert vae_notes(pipe) == {}
    divide_vae(pipe, tiling=True)
    assert (pipe.vae.use_tiling, pipe.vae.use_slicing, vae_notes(pipe)) == (True, True, {"vae_tiling": True})
    for interval in (1, 3):
        assert np.array_equal(generate(pipe, interval)[0], generate(whole, interval)[0])
    # Larger than a tile.
    changed = abs(generate(pipe, 3, size=128)[0].astype(int) - generate(whole, 3, size=128)[0])
    assert 0 < changed.mean() < 10


def test_a_vae_that_does_not_support_parts_is_refused():
    pipe = load_pipeline("shapes", device="cpu")
    del pipe.vae.use_tiling
    with pytest.raises(ValueError, match=r"does not support tiling. Remove this option"):
        divide_vae(pipe, tiling=True)
    pipe.vae = None
    with pytest.raises(ValueError, match="VAE slicing is for a pipeline with a VAE, and a StableDiffusionPipeline has"):
        divide_vae(pipe, slicing=True)
