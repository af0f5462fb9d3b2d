"""Settings by a short name."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from DeepCache import DeepCacheConfig
from DeepCache.bench.variants import PUBLISHED_VARIANTS, Variant, check_names, parse_variant, variant_name
from DeepCache.plan import Plan
from DeepCache.schedule import BETWEEN, FORECASTS, SKIP_MODES, Step, StepSchedule, UniformSchedule
from tests.bench.properties import steady

PLAN = Plan(StepSchedule((Step(True), Step(False, 1, "linear"))), {"unet": "UNet2DModel"}, {"class": "DDIMScheduler"})


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@steady
@given(
    st.fixed_dictionaries(
        {
            "cache_interval": st.integers(1, 1000),
            "cache_branch_id": st.integers(0, 99),
            "skip_mode": st.sampled_from(SKIP_MODES),
            "forecast": st.sampled_from(FORECASTS),
            "guidance_reuse": st.booleans(),
            "between": st.sampled_from(BETWEEN),
            "threshold": st.floats(0, exclude_min=True, allow_infinity=False),
        }
    )
)
def test_a_name_parses_to_the_settings_it_was_made_from(values):
    if values["skip_mode"] != "adaptive":
        del values["threshold"]
    try:
        config = DeepCacheConfig(**values)
    except ValueError:
        # Some settings exclude each other.
        return
    assert parse_variant(variant_name(config)) == Variant(variant_name(config), config)


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("I=3", "I=3 B=0", {"cache_interval": 3}),
        ("i=3 b=2", "I=3 B=2", {"cache_interval": 3, "cache_branch_id": 2}),
        ("I=3,B=2", "I=3 B=2", {"cache_interval": 3, "cache_branch_id": 2}),
        ("I=4 none uniform", "I=4 B=0", {"cache_interval": 4}),
        ("I=4 linear", "I=4 B=0 linear", {"cache_interval": 4, "forecast": "linear"}),
        ("I=4 quadratic", "I=4 B=0 quadratic", {"cache_interval": 4, "forecast": "quadratic"}),
        ("I=4 non-uniform", "I=4 B=0 non-uniform", {"cache_interval": 4, "skip_mode": "non-uniform"}),
        ("I=4 guidance-reuse", "I=4 B=0 guidance-reuse", {"cache_interval": 4, "guidance_reuse": True}),
        ("I=4 I=4", "I=4 B=0", {"cache_interval": 4}),
        ("I=4 skipped", "I=4 B=0 skipped", {"cache_interval": 4, "between": "skipped"}),
        (
            "I=4 response alternating",
            "I=4 B=0 response alternating",
            {"cache_interval": 4, "between": "alternating", "forecast": "response"},
        ),
        ("I=4 adaptive", "I=4 B=0 adaptive threshold=0.1", {"cache_interval": 4, "skip_mode": "adaptive"}),
        (
            "threshold=.25 I=4 limited skipped adaptive",
            "I=4 B=0 limited skipped adaptive threshold=0.25",
            {
                "cache_interval": 4,
                "forecast": "limited",
                "between": "skipped",
                "skip_mode": "adaptive",
                "threshold": 0.25,
            },
        ),
    ],
)
def test_defaults_are_those_of_the_paper(text, name, settings):
    assert parse_variant(text) == Variant(name, DeepCacheConfig(**{"forecast": "none"} | settings))


def test_words_can_be_in_any_order():
    words = ("I=5", "B=1", "linear", "non-uniform", "guidance-reuse")
    config = DeepCacheConfig(5, 1, "non-uniform", "linear", True)
    assert {parse_variant(" ".join(order)) for order in permutations(words)} == {Variant(variant_name(config), config)}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("I=3 cubic", "'cubic'"),
        ("I=three", "'I=three'"),
        ("I=", "'I='"),
        ("I=-1", "'I=-1'"),
        ("I=³", "'I=³'"),
        ("B=0 N=3", "'N=3'"),
        ("I=3 plan=", "'plan='"),
        ("3", "'3'"),
        ("I=0", "cache_interval must be 1 or more, got 0"),
        ("", "''"),
        ("B=1 linear", "has no interval"),
        ("I=3 force", "has no plan to force"),
        ("I=3 I=5", "'I=5' contradicts"),
        ("I=3 B=0 B=1", "'B=1' contradicts"),
        ("I=3 linear quadratic", "'quadratic' contradicts"),
        ("I=3 non-uniform uniform", "'uniform' contradicts"),
        ("I=3 skipped alternating", "'alternating' contradicts"),
        ("I=3 threshold=0.2", r"'I=3 threshold=0\.2' has a threshold.*add adaptive"),
        ("I=3 non-uniform threshold=0.2", "has a threshold, which is for adaptive schedules"),
        ("I=3 adaptive threshold=much", "threshold in the variant .* must be a number above 0, got 'much'"),
        ("I=3 adaptive threshold=0", "threshold must be above 0, got 0"),
        ("I=3 adaptive threshold=", "'threshold='"),
        ("I=3 response", r"between='skipped'"),
        ("I=3 skipped guidance-reuse", "guidance_reuse"),
    ],
)
def test_an_error_names_the_wrong_word(text, word):
    with pytest.raises(ValueError, match=word):
        parse_variant(text)


def test_the_error_of_an_unknown_word_lists_the_valid_ones():
    with pytest.raises(
        ValueError, match=r"I=INTERVAL.*B=BRANCH.*guidance-reuse.*skipped.*adaptive.*threshold=NUMBER.*plan=FILE.*force"
    ):
        parse_variant("I=3 cubic")


def test_a_plan_is_named_after_its_file():
    Path("here").mkdir()
    PLAN.to_file("here/ddim-299.json")
    assert parse_variant("plan=here/ddim-299.json") == Variant("plan ddim-299", DeepCacheConfig(plan=PLAN))
    forced = DeepCacheConfig(plan=PLAN, force_plan=True)
    for text in ("plan=here/ddim-299.json force", "force plan=here/ddim-299.json"):
        assert parse_variant(text) == Variant("plan ddim-299", forced)


def test_a_file_of_settings_can_replace_a_plan():
    config = DeepCacheConfig(7, 2, forecast="quadratic", schedule=UniformSchedule(4))
    config.to_file("mine.json")
    assert parse_variant("plan=mine.json") == Variant("plan mine", config)


def test_forcing_a_plan_keeps_the_other_settings():
    DeepCacheConfig(7, 2, forecast="quadratic", plan=PLAN).to_file("mine.json")
    assert parse_variant("plan=mine.json force").config == DeepCacheConfig(
        7, 2, forecast="quadratic", plan=PLAN, force_plan=True
    )


@pytest.mark.parametrize(
    "more", ["I=3", "B=0", "linear", "none", "uniform", "guidance-reuse", "non-uniform", "skipped"]
)
def test_a_plan_can_be_combined_with_force_only(more):
    PLAN.to_file("plan.json")
    for text in (f"plan=plan.json {more}", f"{more} plan=plan.json force"):
        with pytest.raises(ValueError, match="can be combined with force only"):
            parse_variant(text)


def test_two_plans_contradict_each_other():
    PLAN.to_file("a.json")
    PLAN.to_file("b.json")
    with pytest.raises(ValueError, match=r"'plan=b\.json' contradicts"):
        parse_variant("plan=a.json plan=b.json")


def test_settings_without_a_plan_cannot_be_forced():
    DeepCacheConfig(5).to_file("mine.json")
    with pytest.raises(ValueError, match=r"'mine\.json' holds settings, not a plan"):
        parse_variant("plan=mine.json force")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"interval": 3}', b'{"cache_interval": "3"}', b"\xff\xfe", b'{"format": "tea"}']
)
def test_the_error_names_a_file_without_a_plan(content):
    Path("plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"'plan\.json'(: it is not UTF-8 text| holds no plan)"):
        parse_variant("plan=plan.json")


def test_a_plan_with_values_that_json_lacks_is_refused():
    values = PLAN.to_dict() | {"results": {"psnr": float("inf")}}
    Path("plan.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'plan\.json' holds no plan.*JSON"):
        parse_variant("plan=plan.json force")


def test_the_error_names_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        parse_variant("plan=nowhere.json")


@pytest.mark.parametrize(
    ("text", "can"),
    [
        ("I=1", True),
        ("I=5 B=2", True),
        ("I=5 linear", False),
        ("I=5 quadratic", False),
        ("I=5 non-uniform", False),
        ("I=5 guidance-reuse", False),
        ("I=5 skipped", False),
        ("I=5 adaptive", False),
    ],
)
def test_the_reference_package_supports_uniform_reuse_only(text, can):
    assert parse_variant(text).in_reference is can


def test_the_reference_package_supports_neither_plans_nor_schedules():
    PLAN.to_file("plan.json")
    DeepCacheConfig(3, forecast="none", schedule=UniformSchedule(3)).to_file("schedule.json")
    assert not parse_variant("plan=plan.json").in_reference
    assert not parse_variant("plan=schedule.json").in_reference


def test_the_published_settings_are_those_of_the_table():
    assert [(each.config.cache_interval, each.config.cache_branch_id) for each in PUBLISHED_VARIANTS] == [
        (3, 0),
        (5, 0),
        (5, 1),
    ]
    assert all(variant.in_reference for variant in PUBLISHED_VARIANTS)


def test_two_settings_of_one_name_are_refused():
    check_names([*PUBLISHED_VARIANTS, Variant("plan a", DeepCacheConfig(plan=PLAN))])
    both = [Variant("plan a", DeepCacheConfig(plan=PLAN, force_plan=force)) for force in (False, True)]
    with pytest.raises(ValueError, match="two variants are called 'plan a'"):
        check_names(both)
