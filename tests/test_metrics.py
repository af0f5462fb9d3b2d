from __future__ import annotations

import math
import shutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from DeepCache import metrics
from DeepCache.metrics import clip_score, image_tensor, lpips, psnr, ssim, why_not_clip, why_not_lpips
from tests.bench.tiny_clip import CLIP_SIDE, save_tiny_clip

PROMPTS = ["a red circle", "two blue squares on a green ground", "a small yellow triangle"]


def test_psnr_by_hand():
    reference = torch.zeros(3, 3, 8, 8)
    images = reference.clone()
    images[0] += 0.1
    images[1] += 0.01
    assert psnr(images, reference).tolist() == pytest.approx([20.0, 40.0, math.inf], rel=1e-5)


def test_ssim_of_each_image():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    other[1] = 1 - other[1]
    values = ssim(other, images)
    assert values.shape == (3,)
    assert values[0] == values[2] == pytest.approx(1.0)
    assert values[1] < 0


def test_order_of_images_is_kept():
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(2, 3, 16, 16, generator=generator)
    images = (reference + torch.tensor([0.01, 0.1]).view(2, 1, 1, 1)).clamp(0, 1)
    for metric in (psnr, ssim):
        both = metric(images, reference)
        assert both[0] > both[1]
        assert metric(images[1:], reference[1:]).item() == pytest.approx(both[1].item(), rel=1e-5)


def test_pil_images_are_the_same_as_tensors():
    red, dark = Image.new("RGB", (16, 8), (255, 0, 0)), Image.new("RGBA", (16, 8), (128, 0, 0, 255))
    tensor = image_tensor([red, dark])
    assert tensor.shape == (2, 3, 8, 16)
    assert tensor[:, :, 0, 0].tolist() == [[1, 0, 0], [pytest.approx(128 / 255), 0, 0]]
    assert torch.equal(psnr([red], [dark]), psnr(tensor[:1], tensor[1:]))


def test_half_precision():
    image = torch.rand(1, 3, 16, 16).half()
    assert psnr(image, image).item() == math.inf


@pytest.mark.parametrize(
    ("images", "reference", "word"),
    [
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), "one shape"),
        (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), r"\(N, C, H, W\)"),
        ([], [], "none"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], [], "9x8"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(images, reference, word):
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=word):
            metric(images, reference)


def test_images_too_small_for_ssim_are_refused():
    image = torch.zeros(1, 3, 5, 64)
    with pytest.raises(ValueError, match="64x5"):
        ssim(image, image)
    assert ssim(torch.zeros(1, 3, 6, 64), torch.zeros(1, 3, 6, 64)).item() == pytest.approx(1.0)


@pytest.fixture
def _no_network(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known\nand more about it")

    monkeypatch.setattr(HfApi, "model_info", unreachable)


@pytest.fixture
def clip_folder(tmp_path, _no_network):
    """A tiny CLIP of random weights, saved as published ones are."""
    return save_tiny_clip(tmp_path / "clip")


@pytest.fixture
def samples():
    """Images of the side that CLIP sees, of values that 8 bits hold."""
    return torch.randint(256, (3, 3, CLIP_SIDE, CLIP_SIDE), generator=torch.Generator().manual_seed(0)) / 255


def cosines(folder, samples, prompts):
    """Of each sample with its prompt alone, from the two towers of the model."""
    clip, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    found = []
    for sample, prompt in zip(samples, prompts, strict=True):
        tokens = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
        tokens = [*tokens[: clip.config.text_config.max_position_embeddings - 1], tokenizer.eos_token_id]
        with torch.no_grad():
            image = clip.visual_projection(clip.vision_model(((sample - mean) / std)[None]).pooler_output)[0]
            text = clip.text_projection(clip.text_model(torch.tensor([tokens])).pooler_output)[0]
        found.append((image @ text / (image.norm() * text.norm())).item())
    return found


def test_clip_score_is_the_cosine_of_each_image_with_its_prompt(clip_folder, samples):
    expected = cosines(clip_folder, samples, PROMPTS)
    assert min(expected) < 0 < max(expected)
    values = clip_score(samples, PROMPTS, clip_folder)
    assert values.tolist() == pytest.approx([100 * max(cosine, 0) for cosine in expected], abs=1e-3)


def test_clip_score_keeps_the_order_over_many_images(clip_folder, samples):
    each = {
        (image, prompt): clip_score(samples[image : image + 1], [PROMPTS[prompt]], clip_folder).item()
        for image in range(3)
        for prompt in range(3)
    }
    assert len({round(value, 3) for value in each.values()} - {0.0}) > 3
    order = [pair for _ in range(4) for pair in each]
    images, prompts = [image for image, _ in order], [PROMPTS[prompt] for _, prompt in order]
    expected = [each[pair] for pair in order]
    assert clip_score(samples[images], prompts, clip_folder).tolist() == pytest.approx(expected, abs=1e-3)


def test_clip_score_of_pil_images_is_that_of_tensors(clip_folder):
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    saved = [Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    values = clip_score(images, PROMPTS[:2], str(clip_folder))
    assert torch.equal(clip_score(saved, PROMPTS[:2], clip_folder), values)
    assert torch.equal(clip_score(images.double(), PROMPTS[:2], clip_folder), values)


def test_clip_score_truncates_long_prompts(clip_folder, samples):
    long = " ".join(PROMPTS * 10)
    expected = cosines(clip_folder, samples, [long] * 3)
    assert max(expected) > 0
    values = clip_score(samples, [long] * 3, clip_folder)
    assert values.tolist() == pytest.approx([100 * max(cosine, 0) for cosine in expected], abs=1e-3)
    assert torch.equal(clip_score(samples, [f"{long} and a cat"] * 3, clip_folder), values)


def test_clip_is_loaded_once(clip_folder, samples):
    values = clip_score(samples, PROMPTS, clip_folder)
    shutil.rmtree(clip_folder)
    assert torch.equal(clip_score(samples, PROMPTS, clip_folder), values)


@pytest.mark.parametrize(
    ("prompts", "error", "word"),
    [
        (PROMPTS[:2], ValueError, "got 2 for 3 images"),
        ([], ValueError, "got 0 for 3 images"),
        (PROMPTS[0], TypeError, "one string"),
    ],
)
def test_clip_score_requires_a_prompt_for_each_image(samples, prompts, error, word):
    with pytest.raises(error, match=word):
        clip_score(samples, prompts)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", ["nobody/no-such-clip", "/no/such/folder", "no such name"])
def test_clip_score_without_the_weights(samples, name):
    with pytest.raises(OSError, match="Connect to the internet once, or give a folder") as caught:
        clip_score(samples, PROMPTS, name)
    message = str(caught.value)
    assert repr(name) in message
    assert "(Name or service not known)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "lost", [("model.safetensors",), ("preprocessor_config.json",), ("tokenizer.json", "vocab.json", "merges.txt")]
)
def test_clip_score_of_an_incomplete_folder(clip_folder, samples, lost):
    for name in lost:
        (clip_folder / name).unlink(missing_ok=True)
    with pytest.raises(OSError, match="complete CLIP model") as caught:
        clip_score(samples, PROMPTS, clip_folder)
    assert repr(str(clip_folder)) in str(caught.value)


def test_clip_score_of_broken_weights(clip_folder, samples):
    weights = clip_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(OSError, match="complete CLIP model"):
        clip_score(samples, PROMPTS, clip_folder)


def test_clip_score_with_a_text_encoder_only(clip_folder, samples):
    CLIPModel.from_pretrained(clip_folder).text_model.save_pretrained(clip_folder)
    with pytest.raises(ValueError, match="is not CLIP: "):
        clip_score(samples, PROMPTS, clip_folder)


@pytest.fixture
def torchvision(monkeypatch):
    """What torchmetrics uses of torchvision: the layers of AlexNet, with the weights of a seed."""

    def alexnet(weights):
        assert weights == "ImageNet"
        module.loaded += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            features = nn.Sequential(
                nn.Conv2d(3, 64, 11, stride=4, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.ReLU(),
            )
        return SimpleNamespace(features=features)

    module = ModuleType("torchvision")
    module.__spec__ = ModuleSpec("torchvision", None)
    module.loaded = 0
    module.models = SimpleNamespace(alexnet=alexnet, AlexNet_Weights=SimpleNamespace(DEFAULT="ImageNet"))
    for name in ("torchmetrics.image.lpip", "torchmetrics.functional.image.lpips"):
        monkeypatch.setattr(f"{name}._TORCHVISION_AVAILABLE", True)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    metrics._lpips_metric.cache_clear()
    yield module
    metrics._lpips_metric.cache_clear()


def test_lpips_of_each_image(torchvision):
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    reference = torch.rand(3, 3, 31, 40, generator=torch.Generator().manual_seed(0))
    images = reference.clone()
    images[1] = 1 - images[1]
    images[2] = (images[2] + 0.05).clamp(max=1)
    values = lpips(images, reference)
    assert values.shape == (3,)
    assert values[0] == 0
    assert values[1] > values[2] > 0
    # The networks see values from -1 to 1.
    expected = learned_perceptual_image_patch_similarity(2 * images - 1, 2 * reference - 1, reduction="none")
    torch.testing.assert_close(values, expected)


def test_lpips_loads_its_network_once(torchvision):
    reference, images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    values = lpips(images, reference)
    assert torch.equal(lpips(images.flip(0), reference.flip(0)), values.flip(0))
    assert lpips(images.double()[:1], reference.double()[:1]).item() == pytest.approx(values[0].item(), rel=1e-4)
    black = [Image.new("RGB", (32, 32))] * 2
    assert lpips(black, black).tolist() == [0, 0]
    assert torchvision.loaded == 1


def test_lpips_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    metrics._lpips_metric.cache_clear()
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(ImportError, match=r"needs torchvision.*Install the release for PyTorch") as caught:
        lpips(image, image)
    assert torch.__version__ in str(caught.value)


@pytest.mark.parametrize("error", [OSError("<urlopen error>\nmore"), RuntimeError("invalid hash value"), EOFError()])
def test_lpips_without_the_weights(torchvision, monkeypatch, error):
    def failing(weights):
        raise error

    image = torch.rand(1, 3, 32, 32)
    with monkeypatch.context() as patch:
        patch.setattr(torchvision.models, "alexnet", failing)
        with pytest.raises(OSError, match=r"weights of the network 'alex'.*Connect to the internet") as caught:
            lpips(image, image)
    assert "\n" not in str(caught.value)
    assert lpips(image, image).item() == 0


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (torch.zeros(1, 1, 32, 32), "3 channels"),
        (torch.full((1, 3, 32, 32), 255.0), "255 to 255"),
        (-torch.ones(1, 3, 32, 32), "-1 to -1"),
        (torch.full((1, 3, 32, 32), math.nan), "nan"),
        (torch.zeros(3, 32, 32), r"\(N, C, H, W\)"),
    ],
)
def test_images_that_networks_cannot_see_are_refused(images, word):
    with pytest.raises(ValueError, match=word):
        lpips(images, images)
    with pytest.raises(ValueError, match=word):
        clip_score(images, ["a red circle"])


def test_lpips_refuses_images_that_cannot_be_compared():
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="one shape"):
        lpips(image, torch.zeros(1, 3, 32, 33))
    with pytest.raises(ValueError, match="reference must have values"):
        lpips(image, image + 2)
    with pytest.raises(ValueError, match="'resnet'"):
        lpips(image, image, net="resnet")
    for net, side in (("alex", 31), ("squeeze", 17), ("vgg", 16)):
        small = torch.zeros(1, 3, 64, side - 1)
        with pytest.raises(ValueError, match=f"{side} pixels a side or more, got {side - 1}x64"):
            lpips(small, small, net=net)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of which nothing is on this machine, and which is not to be asked."""

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(HfApi, "model_info", asked)
    monkeypatch.setattr(huggingface_hub.file_download, "hf_hub_download", asked)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_complete_clip_folder_is_available(clip_folder, samples):
    assert why_not_clip(clip_folder) == ""
    assert why_not_clip(str(clip_folder)) == ""
    clip_score(samples, PROMPTS, clip_folder)


@pytest.mark.parametrize("name", ["openai/clip-vit-large-patch14", "nobody/no-such-clip"])
def test_missing_clip_is_reported_without_a_download(hub, name):
    assert why_not_clip(name) == f"the model {name!r} is not on this machine"


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "no such name", "a/b/c"])
def test_invalid_clip_names_are_not_available(hub, name):
    assert why_not_clip(name) == f"the model {name!r} is not on this machine"


def test_incomplete_clip_is_reported_without_a_download(hub):
    snapshot = hub / "models--nobody--half-a-clip" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    reason = why_not_clip("nobody/half-a-clip")
    assert "nobody/half-a-clip" in reason
    assert "the hub was asked" not in reason


def test_reason_for_a_broken_clip_is_one_line(clip_folder):
    (clip_folder / "model.safetensors").unlink()
    reason = why_not_clip(clip_folder)
    assert reason.startswith(f"the folder {str(clip_folder)!r} does not contain a complete CLIP model")
    assert "\n" not in reason


def test_lpips_requires_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert why_not_lpips() == "torchvision is not installed"


def test_missing_lpips_weights_are_reported_without_a_download(torchvision, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert why_not_lpips() == "the weights of the network 'alex' are not on this machine"
    assert torchvision.loaded == 0
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").touch()
    assert why_not_lpips() == "the weights of the network 'alex' are not on this machine"
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert why_not_lpips() == ""
    assert torchvision.loaded == 1
    image = torch.rand(1, 3, 32, 32)
    assert lpips(image, image).item() == 0
    assert torchvision.loaded == 1


def test_weights_of_another_network_are_not_enough(torchvision, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    torchvision.models.vgg16 = torchvision.models.alexnet
    torchvision.models.VGG16_Weights = torchvision.models.AlexNet_Weights
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg11-8a719046.pth").touch()
    assert why_not_lpips("vgg") == "the weights of the network 'vgg' are not on this machine"
    assert torchvision.loaded == 0


def test_reason_for_missing_lpips_is_one_line(torchvision, monkeypatch, tmp_path):
    def failing(weights):
        raise RuntimeError("invalid hash value\nand more")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torchvision.models, "alexnet", failing)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    reason = why_not_lpips()
    assert "weights of the network 'alex'" in reason
    assert "\n" not in reason
