"""Fidelity metrics: PSNR, SSIM and LPIPS to a reference image, and the CLIP score to the prompt."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

__all__ = ["clip_score", "image_tensor", "lpips", "psnr", "ssim", "why_not_clip", "why_not_lpips"]

# The SSIM window is 11 pixels wide and reflects 5 of them at the border.
SSIM_SHORTEST_SIDE = 6

# The side that the poolings of each network reduce to one pixel, and the start of the names of its weights.
_LPIPS_SHORTEST_SIDE = {"alex": 31, "squeeze": 17, "vgg": 16}
_LPIPS_WEIGHTS = {"alex": "alexnet-owt", "squeeze": "squeezenet1_1", "vgg": "vgg16"}
_CLIP_BATCH = 16
_HUB_SECONDS = 10.0

Images = Tensor | Sequence[Image.Image]


def psnr(images: Images, reference: Images) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB; higher is closer.

    Args:
        images: a tensor (N, C, H, W) with values in 0..1, or PIL images of one size.
        reference: the images to compare with, in the same order and shape.

    Returns:
        A tensor (N,), `inf` for identical images.

    Raises:
        ValueError: the shapes differ, or a tensor is not (N, C, H, W).

    Example:
        >>> reference = torch.zeros(2, 3, 16, 16)
        >>> psnr(reference + 0.1, reference)
        tensor([20., 20.])
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = _pair(images, reference)
    return peak_signal_noise_ratio(first, second, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(images: Images, reference: Images) -> Tensor:
    """Structural similarity of each image, with a Gaussian window of 11 pixels; 1 is identical.

    Args:
        images: a tensor (N, C, H, W) with values in 0..1, or PIL images of one size.
        reference: the images to compare with, in the same order and shape.

    Returns:
        A tensor (N,).

    Raises:
        ValueError: the shapes differ, a tensor is not (N, C, H, W), or a side is shorter than 6 pixels.

    Example:
        >>> image = torch.rand(1, 3, 16, 16)
        >>> ssim(image, image)
        tensor([1.])
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = _pair(images, reference)
    height, width = first.shape[-2:]
    if min(height, width) < SSIM_SHORTEST_SIDE:
        raise ValueError(f"SSIM needs images of {SSIM_SHORTEST_SIDE} pixels a side or more, got {width}x{height}")
    values = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)  # a tuple is returned only where the full map is asked for
    return values.reshape(len(first))


def lpips(images: Images, reference: Images, net: str = "alex") -> Tensor:
    """LPIPS of each image: the learned perceptual distance of https://arxiv.org/abs/1801.03924; lower is closer.

    Requires torchvision, which downloads the ImageNet weights of the network at the first call. They stay in memory.

    Args:
        images: a tensor (N, 3, H, W) with values in 0..1, or PIL images of one size. The network runs on the device of
            the tensor, or on the CPU for PIL images.
        reference: the images to compare with, in the same order and shape.
        net: `"alex"`, `"vgg"` or `"squeeze"`. Values of different networks are not comparable.

    Returns:
        A tensor (N,).

    Raises:
        ImportError: torchvision is not installed, or does not work with this PyTorch.
        OSError: the weights of the network are not on this machine and cannot be downloaded.
        ValueError: the shapes differ, a tensor is not (N, 3, H, W) or has values outside 0..1, the network is unknown,
            or a side is too short (31 pixels for `"alex"`, 17 for `"squeeze"`, 16 for `"vgg"`).

    Example:
        >>> image = torch.rand(1, 3, 64, 64)
        >>> lpips(image, image)  # doctest: +SKIP
        tensor([0.])
    """
    if net not in _LPIPS_SHORTEST_SIDE:
        raise ValueError(f"net must be alex, squeeze or vgg, got {net!r}")
    first, second = _pair(images, reference)
    _check_colours("images", first)
    _check_colours("reference", second)
    height, width = first.shape[-2:]
    if min(height, width) < _LPIPS_SHORTEST_SIDE[net]:
        raise ValueError(
            f"LPIPS with {net} needs images of {_LPIPS_SHORTEST_SIDE[net]} pixels a side or more, got {width}x{height}"
        )
    metric = _lpips_metric(net).to(first.device)
    values = []
    with torch.no_grad():
        # The metric returns a mean, here over one image.
        for image, other in zip(first.float(), second.float(), strict=True):
            metric.reset()
            metric.update(image[None], other[None])
            values.append(metric.compute())
    metric.reset()
    return torch.stack(values)


def clip_score(
    images: Images,
    prompts: Sequence[str],
    model: str | os.PathLike[str] = "openai/clip-vit-large-patch14",
) -> Tensor:
    """CLIP score of each image and its prompt: 100 · max(cos, 0) of their CLIP embeddings.

    This is CLIPScore (https://arxiv.org/abs/2104.08718) with the weight 100 that is usual for generated images, instead
    of 2.5. The model is downloaded at the first call, unless the hub cache has it, and stays in memory.

    Args:
        images: a tensor (N, 3, H, W) with values in 0..1, or PIL images of one size. Values are rounded to 8 bits, as
            in a saved image. CLIP runs on the device of the tensor, or on the CPU for PIL images.
        prompts: N prompts, in the order of the images. They are truncated to the length that CLIP reads (77 tokens for
            most models).
        model: a repository of the hub, or a folder with a saved `CLIPModel` and `CLIPProcessor`. Values of different
            models are not comparable.

    Returns:
        A tensor (N,).

    Raises:
        OSError: the model is not on this machine and cannot be downloaded, or its folder is incomplete.
        TypeError: `prompts` is one string.
        ValueError: the numbers of prompts and images differ, the images differ in size, a tensor is not (N, 3, H, W)
            or has values outside 0..1, or the model is not CLIP.

    Example:
        >>> image = Image.new("RGB", (64, 64), "red")
        >>> clip_score([image, image], ["red", "a bowl of soup"]).shape  # doctest: +SKIP
        torch.Size([2])
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of one prompt for each image, got one string")
    pixels = image_tensor(images)
    _check_colours("images", pixels)
    if len(prompts) != len(pixels):
        raise ValueError(f"there must be one prompt for each image, got {len(prompts)} for {len(pixels)} images")
    clip, tokenizer, processor = _clip(os.fspath(model))
    clip.to(pixels.device)
    saved = [Image.fromarray(image) for image in (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()]
    values = []
    for start in range(0, len(saved), _CLIP_BATCH):
        text = tokenizer(
            list(prompts[start : start + _CLIP_BATCH]),
            padding=True,
            truncation=True,
            max_length=clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        processed = processor(saved[start : start + _CLIP_BATCH], return_tensors="pt")
        with torch.no_grad():
            embeddings = clip(
                input_ids=text["input_ids"].to(pixels.device),
                attention_mask=text["attention_mask"].to(pixels.device),
                pixel_values=processed["pixel_values"].to(pixels.device),
            )
        values.append(torch.cosine_similarity(embeddings.image_embeds, embeddings.text_embeds))
    return 100 * torch.cat(values).clamp(min=0)


def why_not_lpips(net: str = "alex") -> str:
    """The reason why `lpips` would need a download or an installation; an empty string if it does not."""
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    if not any((Path(torch.hub.get_dir()) / "checkpoints").glob(f"{_LPIPS_WEIGHTS[net]}-*.pth")):
        return f"the weights of the network {net!r} are not on this machine"
    try:
        _lpips_metric(net)
    except (ImportError, OSError) as error:
        return _first_line(error)
    return ""


def why_not_clip(model: str | os.PathLike[str]) -> str:
    """The reason why `clip_score` would need a download; an empty string if it does not."""
    name = os.fspath(model)
    if not Path(name).is_dir() and not _in_hub_cache(name):
        return f"the model {name!r} is not on this machine"
    try:
        _whole_clip(name, _local_clip(name))
    except Exception as error:  # of any library that reads the files
        return _incomplete_clip(name, error)
    return ""


def image_tensor(images: Images) -> Tensor:
    """Converts images to one float tensor (N, C, H, W) with values in 0..1; of a tensor, only the type.

    Raises:
        ValueError: there are no images, they differ in size, or a tensor is not (N, C, H, W).

    Example:
        >>> image_tensor([Image.new("RGB", (16, 8), "white")]).shape
        torch.Size([1, 3, 8, 16])
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be a tensor (N, C, H, W), got the shape {tuple(images.shape)}")
        return images if images.dtype == torch.float64 else images.float()
    if len(images) == 0:
        raise ValueError("images must hold one image or more, got none")
    if len({image.size for image in images}) > 1:
        sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
        raise ValueError(f"images must be of one size, got {sizes}")
    return torch.stack([_pixels(image) for image in images])


def _pixels(image: Image.Image) -> Tensor:
    data = bytearray(image.convert("RGB").tobytes())
    pixels = torch.frombuffer(data, dtype=torch.uint8).reshape(image.height, image.width, 3)
    return pixels.permute(2, 0, 1).float() / 255


def _pair(images: Images, reference: Images) -> tuple[Tensor, Tensor]:
    first, second = image_tensor(images), image_tensor(reference)
    if first.shape != second.shape:
        raise ValueError(
            f"images and reference must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return first, second


def _check_colours(name: str, images: Tensor) -> None:
    """Rejects tensors for which the networks would silently return wrong values."""
    if images.shape[1] != 3:
        raise ValueError(f"{name} must have 3 channels, got the shape {tuple(images.shape)}")
    low, high = (value.item() for value in images.aminmax())
    if not (low >= 0 and high <= 1):  # NaN is in no range
        raise ValueError(f"{name} must have values in 0..1, got {low:g} to {high:g}")


@cache
def _lpips_metric(net: str) -> Any:
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a build for another PyTorch raises more than ImportError
        raise ImportError(
            f"LPIPS needs torchvision, which cannot be imported ({_first_line(error)}). Install the release for "
            f"PyTorch {torch.__version__}, see https://pytorch.org/get-started/locally"
        ) from error

    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric: Any = LearnedPerceptualImagePatchSimilarity
    try:
        # Each process of a distributed run evaluates its own images.
        return metric(net_type=net, normalize=True, sync_on_compute=False)
    except Exception as error:  # the type depends on when the download failed
        raise OSError(
            f"LPIPS needs the weights of the network {net!r}, which torchvision cannot load ({_first_line(error)}). "
            f"Connect to the internet once, or copy {Path(torch.hub.get_dir()) / 'checkpoints'} from a machine with "
            "the weights"
        ) from error


@cache
def _clip(model: str) -> tuple[Any, Any, Any]:
    """The CLIP model with its tokenizer and its image processor."""
    try:
        found = _local_clip(model)
    except Exception as error:  # of any library that reads the files
        if Path(model).is_dir():
            raise OSError(
                f"{_incomplete_clip(model, error)}. Give a folder with a saved CLIPModel and CLIPProcessor"
            ) from error
        found = _download_clip(model)
    return _whole_clip(model, found)


@cache
def _local_clip(model: str) -> tuple[Any, dict[str, Any], Any, Any]:
    return _load_clip(model, local_files_only=True)


def _whole_clip(model: str, found: tuple[Any, dict[str, Any], Any, Any]) -> tuple[Any, Any, Any]:
    clip, loading, tokenizer, processor = found
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would initialize them randomly.
        raise ValueError(f"the model {model!r} is not CLIP: {len(missing)} weights are missing, such as {missing[0]}")
    return clip.eval().requires_grad_(False), tokenizer, processor


def _incomplete_clip(model: str, error: Exception) -> str:
    if Path(model).is_dir():
        return f"the folder {model!r} does not contain a complete CLIP model ({_first_line(error)})"
    return f"the files of the model {model!r} on this machine are not a complete CLIP model ({_first_line(error)})"


def _in_hub_cache(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return False


def _download_clip(model: str) -> tuple[Any, dict[str, Any], Any, Any]:
    from huggingface_hub import HfApi

    try:
        # One request without retries, so that nobody waits for minutes when offline.
        HfApi().model_info(model, timeout=_HUB_SECONDS)
        return _load_clip(model, local_files_only=False)
    except Exception as error:  # the type depends on the HTTP library
        raise OSError(
            f"the CLIP model {model!r} is not a folder, and neither in the cache nor on the hub "
            f"({_first_line(error)}). Connect to the internet once, or give a folder with a saved CLIPModel and "
            "CLIPProcessor"
        ) from error


def _load_clip(model: str, *, local_files_only: bool) -> tuple[Any, dict[str, Any], Any, Any]:
    # The PIL processor gives the same values with and without torchvision.
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model, local_files_only=local_files_only)
    # Without its files, transformers creates an empty tokenizer.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise OSError("the vocabulary of its tokenizer is missing")
    processor = CLIPImageProcessorPil.from_pretrained(model, local_files_only=local_files_only)
    loaded: Any = CLIPModel.from_pretrained(
        model, local_files_only=local_files_only, dtype=torch.float32, output_loading_info=True
    )
    clip, loading = loaded
    return clip, loading, tokenizer, processor


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
