"""`deepcache export` and `--runtime`, from the command line to the files."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from DeepCache.bench.result_file import read_result
from DeepCache.export import load_graphs
from DeepCache.models import load_pipeline
from tests.cli.helpers import pixels


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPCACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_export_writes_graphs_that_generate_images(run, tmp_path):
    options = ("--format", "torch", "--steps", 10, "--interval", 5, "--forecast", "linear", "--names", "deep_in=state")
    result = run("export", "shapes", *options, "--output", "graphs")
    assert result.exit_code == 0, result.output
    *_, folder = result.stdout.strip().splitlines()
    assert folder == "graphs"
    assert "full.pt2" in result.stdout
    stages = result.stderr.splitlines()
    assert stages[:2] == ["Running the pipeline up to its U-Net", "Running a full step"]
    assert stages[2].startswith("Writing about 25.8 MiB")
    assert stages[3:6] == ["full: tracing", "full: writing", "full: comparing with PyTorch"]
    found = json.loads((tmp_path / "graphs" / "deepcache-graphs.json").read_text())
    assert found["steps"] == ["full", "shallow", "shallow", "shallow", "shallow"] * 2
    assert found["settings"]["cache_interval"] == 5
    assert [each["name"] for each in found["graphs"]["shallow"]["inputs"]][-1] == "state"
    pipe = load_pipeline("shapes", device="cpu")
    pipe.unet = load_graphs(tmp_path / "graphs")
    assert pipe("a red circle", num_inference_steps=2).images[0].size == (64, 64)

    again = run("export", "shapes", *options, "--output", "graphs")
    assert again.exit_code == 2
    assert again.stderr.splitlines()[-1] == (
        "deepcache: the folder 'graphs' contains graphs already. Choose another folder, or overwrite it"
    ).replace("'graphs'", repr(str(tmp_path / "graphs")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "tensorrt"), "format must be one of torch, onnx, openvino, got 'tensorrt'"),
        (("--format", "torch", "--int8"), "int8 requires format openvino, got 'torch'. Remove int8"),
        (("--names", "deep_in"), "--names must be NAME=NEW separated by commas, such as deep_in=state, got 'deep_in'"),
        (
            ("--format", "torch", "--branch", "99"),
            "cache_branch_id must be between 0 and 11 for this UNet2DConditionModel, got 99",
        ),
        (("--images", "0"), "--images must be 1 or more, got 0"),
        (("--steps", "0"), "--steps must be 1 or more, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_options_are_refused_in_one_line(run, options, message):
    result = run("export", "sd15-tiny", *options)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"deepcache: {message}"
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "command", [("generate", "a red circle"), ("batch", "prompts.txt", "--output", "out"), ("app",)]
)
def test_an_unknown_runtime_is_refused_in_one_line(run, tmp_path, command):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    result = run(*command, "--runtime", "tensorrt")
    assert result.exit_code == 2
    assert result.stderr == "deepcache: runtime must be one of torch, openvino, onnx, got 'tensorrt'\n"


def test_compiling_requires_pytorch(run):
    result = run("generate", "a red circle", "--runtime", "openvino", "--compile", "default")
    assert result.exit_code == 2
    assert "compile='default' requires runtime torch, got 'openvino'. Remove one of them" in result.stderr


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
def test_images_in_another_runtime(run, tmp_path, cache, runtime):
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    for name in ("torch", runtime):
        result = run("generate", "a red circle", "--steps", 5, "--runtime", name, "--output", name)
        assert result.exit_code == 0, result.output
    first, second = (next((tmp_path / name).glob("*.png")) for name in ("torch", runtime))
    assert abs(pixels(first) - pixels(second)).max() <= 1
    assert "runtime" not in json.loads(Image.open(first).text["settings"])
    assert json.loads(Image.open(second).text["settings"])["runtime"] == runtime
    assert "full: tracing …" in result.stderr
    made = sorted(cache.iterdir())

    again = run("generate", "a red circle", "--steps", 5, "--runtime", runtime, "--output", "again")
    assert abs(pixels(next((tmp_path / "again").glob("*.png"))) - pixels(second)).max() == 0
    assert "full: writing" not in again.stderr
    assert sorted(cache.iterdir()) == made


def test_a_batch_in_another_runtime(run, tmp_path, cache):
    pytest.importorskip("openvino")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    options = ("batch", "prompts.txt", "--output", "pictures", "--steps", 3)
    result = run(*options, "--runtime", "openvino")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 2
    other = run(*options)
    assert other.exit_code == 2
    assert "runtime" in other.stderr


def test_a_benchmark_of_runtimes(run, tmp_path, cache):
    pytest.importorskip("openvino")
    options = ("--modes", "eager,openvino", "--steps", 3, "--rounds", 1, "--warm-up", 1, "--scopes", "unet")
    result = run("benchmark", *options, "--variant", "I=3", "--no-fewer-steps", "--output", "speed.json")
    assert result.exit_code == 0, result.output
    cells = read_result(tmp_path / "speed.json")["cells"]
    assert [(cell["mode"], cell["status"]) for cell in cells] == [("eager", "done"), ("openvino", "done")]
    assert [row["pattern"] for row in cells[1]["rows"]] == ["FFF", "F.."]
    assert cells[0]["rows"][1]["mac_share"] == cells[1]["rows"][1]["mac_share"]


def test_a_profile_of_another_runtime_is_refused(run):
    result = run("benchmark", "--modes", "openvino", "--profile", "profile")
    assert result.exit_code == 2
    assert "--profile requires PyTorch, and cannot be combined with the mode openvino. Remove one" in result.stderr
