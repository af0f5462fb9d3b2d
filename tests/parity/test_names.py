"""Every public name of the reference package behaves here as docs/reference-names.md says."""

from __future__ import annotations

import importlib

import pytest

import DeepCache
from benchmarks.harness.reference_package import FOLDER
from DeepCache import DeepCacheSDHelper, flops
from DeepCache.extension.deepcache import DeepCacheSDHelper as ExtensionHelper
from tests.engine.tiny_pipeline import tiny_pipeline
from tests.parity.names import ANSWERS, FILE, REFUSED_MODULES, names_of_flops, names_of_helper, page

HELPER = DeepCacheSDHelper(tiny_pipeline())


def test_the_page_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == page(), "run: python -m tests.parity.names"


def test_every_name_of_the_helper_has_an_answer():
    assert names_of_helper() == set(ANSWERS)


@pytest.mark.parametrize(("name", "answer"), ANSWERS.items(), ids=ANSWERS)
def test_a_name_of_the_helper_behaves_as_documented(name, answer):
    assert hasattr(DeepCacheSDHelper, name) or name in vars(HELPER)
    if "an `AttributeError`" in answer:
        with pytest.raises(AttributeError, match=name):
            getattr(HELPER, name)
    elif "a `NotImplementedError`" in answer:
        with pytest.raises(NotImplementedError):
            getattr(HELPER, name)()
    else:
        getattr(HELPER, name)
    if "overriding raises" in answer:
        with pytest.raises(TypeError, match=f"Mine overrides {name}"):
            type("Mine", (DeepCacheSDHelper,), {name: None})
    if "a subclass may" in answer:
        type("Mine", (DeepCacheSDHelper,), {name: getattr(DeepCacheSDHelper, name)})


def test_the_helper_is_where_programs_import_it_from():
    assert ExtensionHelper is DeepCacheSDHelper is DeepCache.DeepCacheSDHelper


@pytest.mark.parametrize("module", REFUSED_MODULES)
def test_copies_of_an_older_diffusers_suggest_a_replacement(module):
    pipeline = REFUSED_MODULES[module].split("`")[1]
    with pytest.raises(ImportError, match=rf"{module} .*`from diffusers import {pipeline}`"):
        importlib.import_module(module)
    with pytest.raises(ImportError, match=f"from diffusers import {pipeline}"):
        importlib.import_module(f"{module}.unet_2d_condition")


def test_flops_has_only_the_function_that_programs_call():
    assert [name for name in names_of_flops() if hasattr(flops, name)] == ["count_ops_and_params"]


def test_there_are_no_other_modules():
    found = {path.name for path in (FOLDER / "DeepCache").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__pycache__"} == {"__init__.py", "extension", "flops.py", "sd", "sdxl", "svd"}
