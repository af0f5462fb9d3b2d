import pytest
from PIL import Image

from DeepCache.app.difference import difference_map


def picture(*colours):
    image = Image.new("RGB", (len(colours), 1))
    image.putdata(colours)
    return image


def colours_of(found):
    pixels = found.picture.tobytes()
    return [tuple(pixels[start : start + 3]) for start in range(0, len(pixels), 3)]


GREY = (100, 100, 100)


def test_identical_pictures_are_black_and_said_to_be():
    found = difference_map(picture(GREY, GREY), picture(GREY, GREY))
    assert found.identical
    assert (found.largest, found.gain) == (0, 1)
    assert colours_of(found) == [(0, 0, 0)] * 2
    assert found.in_words == "No difference: the two pictures are identical."


def test_the_largest_difference_of_the_channels_counts_whatever_its_sign():
    original = picture(GREY, GREY, GREY, GREY)
    changed = picture((101, 97, 102), (97, 100, 100), (100, 100, 103), GREY)
    found = difference_map(changed, original)
    colours = colours_of(found)
    assert found.largest == 3
    assert colours[0] == colours[1] == colours[2] != (0, 0, 0)
    assert colours[3] == (0, 0, 0)
    assert colours_of(difference_map(original, changed)) == colours
    assert found.picture.size == original.size


@pytest.mark.parametrize(
    ("largest", "gain"), [(1, 128), (2, 64), (3, 64), (7, 32), (8, 16), (127, 2), (128, 1), (255, 1)]
)
def test_it_is_amplified_by_the_greatest_power_of_two_that_stays_within_the_range(largest, gain):
    found = difference_map(picture((largest, 0, 0)), picture((0, 0, 0)))
    assert (found.largest, found.gain, found.amplification) == (largest, gain, f"×{gain}")
    assert 128 <= largest * gain <= 255
    assert found.in_words == (
        f"Difference of the two pictures, amplified ×{gain}: black is none. The largest is {largest} of 255."
    )


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="must be of one size, got 1×1 and 2×1"):
        difference_map(picture(GREY), picture(GREY, GREY))


def test_pictures_of_other_modes_are_compared_in_their_colours():
    found = difference_map(Image.new("L", (2, 2), 10), Image.new("RGBA", (2, 2), (10, 10, 14, 255)))
    assert found.largest == 4


def test_every_larger_difference_is_lighter():
    values = range(256)
    found = difference_map(picture(*((value, 0, 0) for value in values)), picture(*([(0, 0, 0)] * 256)))
    colours = colours_of(found)
    assert colours[0] == (0, 0, 0)
    assert colours[-1] == (255, 255, 255)
    lightness = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in colours]
    assert all(darker < lighter for darker, lighter in zip(lightness, lightness[1:], strict=False))
