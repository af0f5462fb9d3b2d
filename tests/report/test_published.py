import pytest

from DeepCache.bench.variants import parse_variant
from DeepCache.report.published import PUBLISHED, is_published_model, published_time

MODELS = ("sd21", "sd15", "stabilityai/stable-diffusion-2-1", "stable-diffusion-v1-5/stable-diffusion-v1-5")


def time(model="sd21", width=512, height=512, batch=8, variant="I=3 B=0"):
    return published_time(model, width, height, batch, parse_variant(variant).config.to_dict())


def test_all_of_the_published_table_is_there():
    assert [size for size, _ in PUBLISHED] == [512] * 3 + [768] * 3 + [1024] * 3
    assert [batch for _, batch in PUBLISHED] == [8, 4, 1] * 3
    assert all(list(row.by_setting) == [(3, 0), (5, 0), (5, 1)] for row in PUBLISHED.values())


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=[f"{size}-{batch}" for size, batch in PUBLISHED])
def test_published_seconds_and_ratios_agree(row):
    for found in row.by_setting.values():
        # Both are rounded.
        assert row.original / found.seconds == pytest.approx(found.speed_up, abs=0.03)


def test_some_of_it():
    assert (time().seconds, time().speed_up) == (6.88, 2.32)
    assert time(width=1024, height=1024, batch=1, variant="I=5 B=1").speed_up == 1.93


@pytest.mark.parametrize("model", [*MODELS, "models/stable-diffusion-2-1-base", "sd-models/Stable-Diffusion-v1-5/"])
def test_models_that_it_is_of(model):
    assert is_published_model(model)
    assert time(model) == time()


@pytest.mark.parametrize("model", ["sdxl", "sd21-tiny", "shapes", "stable-diffusion-2-1/other", "owner/sd21"])
def test_models_that_it_is_not_of(model):
    assert not is_published_model(model)
    assert time(model) is None


@pytest.mark.parametrize(
    "other",
    [
        {"width": 640, "height": 640},
        {"height": 768},
        {"batch": 2},
        {"variant": "I=4 B=0"},
        {"variant": "I=3 B=1"},
        {"variant": "I=3 B=0 linear"},
        {"variant": "I=3 B=0 guidance-reuse"},
        {"variant": "I=3 B=0 non-uniform"},
    ],
)
def test_what_was_not_published(other):
    assert time(**other) is None


def test_settings_without_a_configuration_were_not_published():
    assert published_time("sd21", 512, 512, 8, None) is None
