import pytest
from PIL import Image

from DeepCache.difference_image import difference_image

GREY = (100, 100, 100)


def image_of(*colors):
    image = Image.new("RGB", (len(colors), 1))
    image.putdata(colors)
    return image


def colors_of(found):
    pixels = found.image.tobytes()
    return [tuple(pixels[start : start + 3]) for start in range(0, len(pixels), 3)]


def test_identical_images_are_black_and_reported_as_identical():
    found = difference_image(image_of(GREY, GREY), image_of(GREY, GREY))
    assert (found.largest, found.gain) == (0, 1)
    assert colors_of(found) == [(0, 0, 0)] * 2
    assert found.caption == "No difference: the two images are identical."


def test_the_largest_difference_of_the_channels_counts_regardless_of_its_sign():
    original = image_of(GREY, GREY, GREY, GREY)
    changed = image_of((101, 97, 102), (97, 100, 100), (100, 100, 103), GREY)
    found = difference_image(changed, original)
    colors = colors_of(found)
    assert found.largest == 3
    assert colors[0] == colors[1] == colors[2] != (0, 0, 0)
    assert colors[3] == (0, 0, 0)
    assert colors_of(difference_image(original, changed)) == colors
    assert found.image.size == original.size


@pytest.mark.parametrize(
    ("largest", "gain"), [(1, 128), (2, 64), (3, 64), (7, 32), (8, 16), (127, 2), (128, 1), (255, 1)]
)
def test_the_gain_is_the_largest_power_of_two_that_stays_in_range(largest, gain):
    found = difference_image(image_of((largest, 0, 0)), image_of((0, 0, 0)))
    assert (found.largest, found.gain) == (largest, gain)
    assert 128 <= largest * gain <= 255
    assert found.caption == f"Difference, amplified ×{gain}: black is none. The largest is {largest} of 255."


def test_a_given_gain_saturates():
    found = difference_image(image_of((1, 0, 0), (40, 0, 0)), image_of((0, 0, 0), (0, 0, 0)), gain=8)
    assert found.gain == 8
    assert colors_of(found)[1] == (255, 255, 255)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="must have the same size, got 1×1 and 2×1"):
        difference_image(image_of(GREY), image_of(GREY, GREY))


def test_images_of_other_modes_are_compared_by_their_colors():
    found = difference_image(Image.new("L", (2, 2), 10), Image.new("RGBA", (2, 2), (10, 10, 14, 255)))
    assert found.largest == 4


def test_every_larger_difference_is_lighter():
    values = range(256)
    found = difference_image(image_of(*((value, 0, 0) for value in values)), image_of(*([(0, 0, 0)] * 256)))
    colors = colors_of(found)
    assert colors[0] == (0, 0, 0)
    assert colors[-1] == (255, 255, 255)
    lightness = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in colors]
    assert all(darker < lighter for darker, lighter in zip(lightness, lightness[1:], strict=False))
