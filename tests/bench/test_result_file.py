"""Result files and their schemas."""

from __future__ import annotations

import copy
import json
import re
import sys
from itertools import count

import pytest
from jsonschema import Draft202012Validator

from DeepCache.bench import result_file
from DeepCache.bench.ablation import AblationSettings, grid, run_ablation
from DeepCache.bench.benchmark import BenchmarkSettings, run_benchmark
from DeepCache.bench.result_file import (
    ABLATION_FORMAT,
    BENCHMARK_FORMAT,
    OLDER_ABLATION_FORMAT,
    read_result,
    resumed_result,
    schema,
    write_result,
)
from DeepCache.bench.variants import parse_variant
from tests.bench.small_models import use_model
from tests.tune.small_pipeline import PROMPTS, small_pipeline

FORMATS = (BENCHMARK_FORMAT, ABLATION_FORMAT)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A finished file of each format, from real runs."""
    folder = tmp_path_factory.mktemp("results")
    benchmark = BenchmarkSettings(variants=(parse_variant("I=2"),), steps=3, rounds=1, warm_up=0, scopes=("unet",))
    ablation = AblationSettings(PROMPTS, grid((2,), forecasts=("none",)), steps=(3,), samples=1)
    with pytest.MonkeyPatch.context() as patched:
        use_model(patched, small_pipeline)
        run_benchmark(benchmark, folder / "benchmark.json", device="cpu")
        run_ablation(ablation, folder / "ablation.json", device="cpu")
    return {BENCHMARK_FORMAT: folder / "benchmark.json", ABLATION_FORMAT: folder / "ablation.json"}


def parts(node, definitions, place=""):
    """Every schema within a schema that belongs to a key, with its definition."""
    for name, part in node.get("properties", {}).items():
        whole = part | definitions.get(part.get("$ref", "").removeprefix("#/$defs/"), {})
        yield f"{place}.{name}", whole
        yield from parts(whole, definitions, f"{place}.{name}")
    for inside in ("items", "additionalProperties"):
        if isinstance(node.get(inside), dict):
            yield from parts(node[inside], definitions, f"{place}[]")


def all_parts(kind):
    return list(parts(schema(kind), schema(kind).get("$defs", {})))


def objects(value, place=()):
    """Every JSON object within a value, with the path to it."""
    if isinstance(value, dict):
        yield place, value
        for name, item in value.items():
            yield from objects(item, (*place, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, (*place, index))


def shown(place):
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_schema_is_valid_and_describes_every_key(kind):
    Draft202012Validator.check_schema(schema(kind))
    found = all_parts(kind)
    assert len(found) > 50
    assert [place for place, part in found if not part.get("description", "").endswith((".", "…"))] == []
    for place, part in (("", schema(kind)), *found):
        if "properties" in part and "device" not in place:
            assert set(part["required"]) == set(part["properties"]), place


@pytest.mark.parametrize("kind", FORMATS)
def test_a_real_result_fits_its_schema(kind, results):
    result = read_result(results[kind])
    assert result["format"] == kind
    assert result == json.loads(results[kind].read_text(encoding="utf-8"))
    named = {re.sub(r"\[\d+\]", "[]", shown((*place, key))) for place, value in objects(result) for key in value}
    # What has names of its own is described as one.
    own = re.compile(r"(versions|left_out|variants|config|machine\.cpu_features)\.")
    described = {place.lstrip(".").replace("[].", "[].") for place, _ in all_parts(kind)}
    assert {name for name in named if not own.search(name)} <= described


@pytest.mark.parametrize("kind", FORMATS)
def test_a_surplus_or_missing_key_is_reported_with_its_place(kind, results, tmp_path):
    whole = read_result(results[kind])
    free = {"versions", "left_out", "variants", "config"}
    tried = count()
    for place, _ in objects(whole):
        if free & set(place):
            continue
        for change in ("add", "remove"):
            result = copy.deepcopy(whole)
            part = result
            for step in place:
                part = part[step]
            if change == "add":
                part["surplus"] = 1
            else:
                # The last one, which for the device is one that it must have.
                part.pop([name for name in part if name != "format"][-1])
            write_result(tmp_path / "wrong.json", result)
            with pytest.raises(ValueError, match=r"wrong\.json' is damaged at ") as caught:
                read_result(tmp_path / "wrong.json")
            assert f"at {shown(place) or 'its top'}: " in str(caught.value)
            assert ("surplus" if change == "add" else "required") in str(caught.value)
            next(tried)
    assert next(tried) > 15


@pytest.mark.parametrize("kind", FORMATS)
def test_a_value_of_the_wrong_type_is_reported_with_its_place(kind, results, tmp_path):
    result = read_result(results[kind])
    result["machine"]["cores"] = "many"
    write_result(tmp_path / "wrong.json", result)
    with pytest.raises(ValueError, match=r"damaged at machine\.cores: 'many'"):
        read_result(tmp_path / "wrong.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "' is not JSON"),
        (b'{"format": ', "' is not JSON"),
        (b"[]", "' is not a result file: it holds no JSON object"),
        (
            b"{}",
            "' .*its 'format' is None.*'DeepCache benchmark 1', 'DeepCache ablation 2', 'DeepCache ablation 1'",
        ),
        (b'{"format": "DeepCache plan 1"}', "' .*its 'format' is 'DeepCache plan 1'"),
        (b"\xff\xfe\x00", r"': it is not UTF-8 text \(byte 0\)"),
    ],
)
def test_a_file_that_is_not_a_result_is_refused(content, words, tmp_path):
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"other\.json{words}"):
        read_result(tmp_path / "other.json")


def test_checking_without_jsonschema_names_the_extra(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ImportError, match=r"pip install 'DeepCache\[report\]'"):
        read_result(results[BENCHMARK_FORMAT])


def test_a_result_is_written_and_read_and_its_folder_is_created(tmp_path):
    path = tmp_path / "a" / "b" / "result.json"
    write_result(path, {"größe": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"größe": [1, 2.5, None]}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), object()])
def test_a_value_that_json_lacks_leaves_the_old_file(wrong, tmp_path):
    path = tmp_path / "result.json"
    write_result(path, {"value": 1})
    with pytest.raises((ValueError, TypeError)):
        write_result(path, {"value": wrong})
    assert json.loads(path.read_text(encoding="utf-8")) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_during_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result(path, {"value": 1})
    with monkeypatch.context() as patched:

        def crash(self, target):
            raise KeyboardInterrupt

        patched.setattr(type(path), "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write_result(path, {"value": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]
    assert resumed_result(path, {"value": 1}) == {"value": 1}
    write_result(path, {"value": 3})
    assert json.loads(path.read_text(encoding="utf-8")) == {"value": 3}
    assert list(tmp_path.iterdir()) == [path]


FRESH = {
    "format": BENCHMARK_FORMAT,
    "command": "deepcache benchmark",
    "date": "2025-01-01T00:00:00+00:00",
    "machine": {"cpu": "a processor", "cores": 2},
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
    "seed": 0,
    "device": {"type": "cpu", "name": "a processor"},
    "settings": {"model": "sd15", "steps": 50, "guidance": None, "grid": {"sizes": [(512, 512)], "batches": [1, 4]}},
    "cells": [{"status": "waiting"}, {"status": "waiting"}],
}


@pytest.fixture
def stopped(tmp_path):
    """The file of a run that was stopped."""
    path = tmp_path / "stopped.json"
    cells = [{"status": "done"}, {"status": "waiting"}]
    write_result(path, FRESH | {"cells": cells})
    return path


def test_a_run_without_a_file_starts_fresh(tmp_path):
    assert resumed_result(tmp_path / "none.json", FRESH) is FRESH


def test_another_command_and_another_date_resume(stopped):
    later = FRESH | {"command": "deepcache benchmark -o stopped.json", "date": "2025-02-02T00:00:00+00:00"}
    found = resumed_result(stopped, later)
    assert [cell["status"] for cell in found["cells"]] == ["done", "waiting"]
    # As in the file: what is there is where the numbers come from.
    assert (found["command"], found["date"]) == (FRESH["command"], FRESH["date"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"format": ABLATION_FORMAT}, 'format is "DeepCache benchmark 1" there and "DeepCache ablation 2" now'),
        ({"seed": 3}, "seed is 0 there and 3 now"),
        (
            {"versions": {"torch": "2.14.0", "diffusers": "0.42.1"}},
            'versions.torch is "2.13.0" there and "2.14.0" now',
        ),
        ({"versions": {"torch": "2.13.0"}}, 'versions.diffusers is "0.42.1" there and null now'),
        ({"machine": {"cpu": "a processor", "cores": 4}}, "machine.cores is 2 there and 4 now"),
        ({"device": {"type": "cuda", "name": "a card"}}, 'device.type is "cpu" there and "cuda" now'),
        ({"settings": FRESH["settings"] | {"steps": 25}}, "settings.steps is 50 there and 25 now"),
        ({"settings": FRESH["settings"] | {"guidance": 7.5}}, "settings.guidance is null there and 7.5 now"),
        (
            {"settings": FRESH["settings"] | {"grid": {"sizes": [(512, 512)], "batches": [1, 8]}}},
            "settings.grid.batches is [1, 4] there and [1, 8] now",
        ),
    ],
)
def test_the_file_of_another_run_is_refused_with_the_difference(changed, words, stopped):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        resumed_result(stopped, FRESH | changed)
    assert str(caught.value).startswith(f"{str(stopped)!r} is of another run: ")
    assert str(caught.value).endswith("delete it, or give another --output")


def test_a_long_value_is_shortened_in_a_message(stopped):
    changed = {"settings": FRESH["settings"] | {"model": "x" * 500}}
    with pytest.raises(ValueError, match=r'settings\.model is "sd15" there and "x+… now') as caught:
        resumed_result(stopped, FRESH | changed)
    assert len(str(caught.value)) < len(str(stopped)) + 250


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b'{"format": "DeepCache bench', "is not JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"null", "holds no JSON object"),
        (b"{}", "format is null there"),
    ],
)
def test_a_damaged_file_is_reported_in_one_line(content, words, tmp_path):
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        resumed_result(path, FRESH)
    assert repr(str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cells", [None, {}, [], [{"status": "done"}]])
def test_a_file_without_its_cells_is_reported(cells, tmp_path):
    path = tmp_path / "damaged.json"
    write_result(path, FRESH | {"cells": cells})
    with pytest.raises(ValueError, match=r"damaged\.json' is damaged: 'cells' must be a list of 2"):
        resumed_result(path, FRESH)


def test_schemas_are_in_the_package():
    kinds = {*FORMATS, OLDER_ABLATION_FORMAT}
    assert set(result_file._SCHEMAS) == kinds
    for kind in kinds:
        assert schema(kind)["properties"]["format"]["const"] == kind
