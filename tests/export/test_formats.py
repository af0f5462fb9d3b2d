"""ONNX and OpenVINO graphs of a small U-Net are within their tolerance."""

from __future__ import annotations

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.export import export_graphs, load_graphs
from DeepCache.export.formats import graph_format
from tests.engine.tiny_pipeline import tiny_pipeline
from tests.export.runs import CALL, latents, least_unet

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
CONFIG = DeepCacheConfig(cache_interval=3, forecast="linear")


@pytest.fixture(scope="module", params=PACKAGES)
def exported(request, tmp_path_factory):
    pytest.importorskip(PACKAGES[request.param], reason=f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param) / "graphs"
    return folder, export_graphs(tiny_pipeline(least_unet()), folder, CALL(), CONFIG, format=request.param)


def test_difference_from_pytorch_is_reported_and_small(exported):
    differences = [graph.largest_difference for graph in exported[1].graphs.values()]
    assert 0 < max(differences) <= 1e-4


def test_pipeline_on_graphs_matches_the_engine(exported):
    own, other = tiny_pipeline(least_unet()), tiny_pipeline()
    other.unet = load_graphs(exported[0])
    assert torch.allclose(latents(other), latents(own), atol=1e-3)
    engines = [apply_deepcache(pipe, CONFIG) for pipe in (own, other)]
    assert torch.allclose(latents(other), latents(own), atol=1e-3)
    assert engines[0].stats.pattern == engines[1].stats.pattern == "F..F..F"


def test_onnx_weights_are_in_a_separate_file(exported):
    folder, found = exported
    if found.format != "onnx":
        pytest.skip("ONNX only")
    weights = sum(weight.nbytes for weight in least_unet().parameters())
    assert (folder / "full.onnx.data").stat().st_size > weights / 2
    assert found.graphs["full"].bytes == sum(each.stat().st_size for each in folder.glob("full.*"))


def test_names_of_inputs_and_outputs_are_in_the_files(exported):
    folder, found = exported
    names = [each.name for each in found.graphs["shallow"].inputs]
    assert names == ["sample", "timestep", "deep_in"]
    if found.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "shallow.onnx", providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_inputs()] == names
        assert [each.name for each in session.get_outputs()] == ["prediction"]
    else:
        import openvino

        model = openvino.Core().read_model(folder / "shallow.xml")
        assert [each.any_name for each in model.inputs] == names
        assert [each.any_name for each in model.outputs] == ["prediction"]


def test_unknown_provider_is_refused(exported):
    with pytest.raises(ValueError, match=r"provider must be one of .*got 'NoExecutionProvider'"):
        load_graphs(exported[0], provider="NoExecutionProvider")


def test_bfloat16(exported, tmp_path):
    """Inputs and outputs of the graphs are float32; the pipeline sees bfloat16."""
    if exported[1].format == "onnx":
        pytest.skip("ONNX Runtime has no convolution in bfloat16 on the CPU")
    unet = least_unet().to(torch.bfloat16)
    call = {name: each.to(torch.bfloat16) if name.endswith("embeds") else each for name, each in CALL().items()}
    found = export_graphs(tiny_pipeline(unet), tmp_path / "graphs", call, CONFIG, format=exported[1].format)
    assert {each.dtype for graph in found.graphs.values() for each in (*graph.inputs, *graph.outputs)} == {"float32"}
    assert found.dtype == "bfloat16"
    loaded = load_graphs(tmp_path / "graphs")
    assert loaded.dtype == torch.bfloat16
    sample = torch.randn(2, 4, 8, 8).to(torch.bfloat16)
    text = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        expected, output = unet(sample, 1, text).sample, loaded(sample, 1, text).sample
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() <= 0.05 * expected.abs().max()


def test_unknown_format_is_refused():
    with pytest.raises(ValueError, match="format must be one of torch, onnx, openvino, got 'tensorrt'"):
        graph_format("tensorrt")


def test_int8_weights(tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed")
    pytest.importorskip("nncf", reason="nncf is not installed")
    found = export_graphs(
        tiny_pipeline(least_unet()), tmp_path / "graphs", CALL(), CONFIG, format="openvino", int8=True
    )
    assert 1e-4 < found.graphs["full"].largest_difference < 0.2
