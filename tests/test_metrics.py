from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from DeepCache.metrics import image_tensor, psnr, ssim


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
def test_what_cannot_be_compared(images, reference, word):
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=word):
            metric(images, reference)


def test_images_too_small_for_ssim():
    image = torch.zeros(1, 3, 5, 64)
    with pytest.raises(ValueError, match="64x5"):
        ssim(image, image)
    assert ssim(torch.zeros(1, 3, 6, 64), torch.zeros(1, 3, 6, 64)).item() == pytest.approx(1.0)
