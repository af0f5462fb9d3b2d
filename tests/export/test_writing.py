"""Interrupted exports, folders with other files, and refused exports."""

from __future__ import annotations

import copy
import json
import shutil
from collections import namedtuple

import pytest
import torch
from peft import LoraConfig

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.export import export_graphs, load_graphs, writing
from DeepCache.export.call import CallReader
from DeepCache.export.formats import FORMATS, GraphOptions
from DeepCache.export.writing import WantedGraph, traced
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.engine.tiny_pipeline import tiny_pipeline, tiny_unet
from tests.export.runs import CALL, latents, least_unet


class Interrupted(BaseException):
    """As Ctrl-C."""


@pytest.fixture
def written(monkeypatch):
    """Names of the graphs that are written; those in `written.stop_at` are interrupted in the middle of their file."""
    names = []
    Written = namedtuple("Written", "names stop_at")
    stop_at: list[str] = []
    save = FORMATS["torch"].save

    def interruptible(program, path, *more):
        names.append(path.stem)
        if path.stem in stop_at:
            path.write_bytes(b"half of a fi")
            raise Interrupted
        save(program, path, *more)

    monkeypatch.setattr(FORMATS["torch"], "save", interruptible)
    return Written(names, stop_at)


def export(folder, seed=0, **options):
    torch.manual_seed(seed)
    unet = least_unet()
    with torch.no_grad():
        unet.conv_out.weight.mul_(1 + seed)
    export_graphs(tiny_pipeline(unet), folder, CALL(), format="torch", **options)
    return unet


def on_graphs(folder):
    pipe = tiny_pipeline()
    pipe.unet = load_graphs(folder)
    return latents(pipe)


def test_an_interrupted_export_resumes_after_the_last_graph(tmp_path, written):
    written.stop_at.append("shallow")
    with pytest.raises(Interrupted):
        export(tmp_path / "graphs")
    with pytest.raises(FileNotFoundError, match="is not a folder of exported graphs"):
        load_graphs(tmp_path / "graphs")
    written.stop_at.clear()
    unet = export(tmp_path / "graphs")
    assert written.names == ["full", "shallow", "shallow"]
    assert torch.equal(on_graphs(tmp_path / "graphs"), latents(tiny_pipeline(unet)))
    names = {each.name for each in (tmp_path / "graphs").iterdir()}
    assert names == {"full.pt2", "shallow.pt2", "deepcache-graphs.json"}
    assert [each.name for each in tmp_path.iterdir()] == ["graphs"]


def test_an_interrupted_export_of_another_model_is_not_resumed(tmp_path, written):
    written.stop_at.append("shallow")
    with pytest.raises(Interrupted):
        export(tmp_path / "graphs")
    written.stop_at.clear()
    unet = export(tmp_path / "graphs", seed=1)
    assert written.names == ["full", "shallow", "full", "shallow"]
    assert torch.equal(on_graphs(tmp_path / "graphs"), latents(tiny_pipeline(unet)))


def test_overwrite_replaces_graphs_once_the_new_ones_are_finished(tmp_path, written):
    export(tmp_path / "graphs")
    with pytest.raises(ValueError, match=r"contains graphs already. Choose another folder, or overwrite it"):
        export(tmp_path / "graphs", seed=1)
    before = on_graphs(tmp_path / "graphs")
    written.stop_at.append("full")
    with pytest.raises(Interrupted):
        export(tmp_path / "graphs", seed=1, overwrite=True)
    assert torch.equal(on_graphs(tmp_path / "graphs"), before)
    written.stop_at.clear()
    export(tmp_path / "graphs", seed=1, overwrite=True)
    assert not torch.equal(on_graphs(tmp_path / "graphs"), before)


def test_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"contains other files than graphs, such as 'thesis\.tex'\. Choose"):
        export(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=r"is a file. Choose a folder"):
        export(tmp_path / "thesis.tex", overwrite=True)


def test_full_disk_is_reported_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"need about .* KiB in .* where 0.977 KiB are free. Delete files"):
        export(tmp_path / "graphs")


def test_graph_that_differs_from_pytorch_is_refused(tmp_path, monkeypatch):
    load = FORMATS["torch"].load

    def wrong(path, **options):
        run = load(path, **options)
        return lambda tensors: [tensor + 1e-3 * tensor.abs().max() for tensor in run(tensors)]

    monkeypatch.setattr(FORMATS["torch"], "load", wrong)
    with pytest.raises(ValueError, match=r"the graph 'full' differs from PyTorch by 0.001 .*, 0.0001 is allowed"):
        export(tmp_path / "graphs")
    assert not (tmp_path / "graphs" / "deepcache-graphs.json").exists()


def test_inputs_and_outputs_can_be_renamed(tmp_path):
    export(tmp_path / "graphs", names={"deep_in": "state_in", "deep_out": "state_out"})
    graphs = json.loads((tmp_path / "graphs" / "deepcache-graphs.json").read_text())["graphs"]
    assert [each["name"] for each in graphs["full"]["outputs"]] == ["prediction", "state_out"]
    assert [each["name"] for each in graphs["shallow"]["inputs"]] == ["sample", "timestep", "state_in"]
    unet = least_unet()
    with torch.no_grad():
        unet.conv_out.weight.mul_(1)
    pipes = tiny_pipeline(unet), tiny_pipeline()
    pipes[1].unet = load_graphs(tmp_path / "graphs")
    for pipe in pipes:
        apply_deepcache(pipe, DeepCacheConfig(cache_interval=3))
    assert torch.equal(*map(latents, pipes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": {"deepin": "a"}}, "names must be among .*deep_in, deep_out, prediction, got 'deepin'"),
        ({"names": {"deep_in": "sample"}}, "names must differ, got .*sample"),
        ({"int8": True}, "int8 requires format openvino, got 'torch'"),
        ({"config": DeepCacheConfig(cache_branch_id=40)}, "cache_branch_id must be between 0 and"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_invalid_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "graphs", **options)


def test_several_branches_are_refused(tmp_path):
    schedule = StepSchedule((Step(True), Step(False, 0), Step(False, 1)))
    with pytest.raises(ValueError, match="graphs have one skip branch, but the plan uses 0, 1"):
        export(tmp_path / "graphs", config=DeepCacheConfig(plan=Plan(schedule, {}, {}), force_plan=True))


def test_pipelines_with_deepcache_are_refused(tmp_path):
    pipe = tiny_pipeline()
    apply_deepcache(pipe)
    with pytest.raises(ValueError, match=r"Call remove_deepcache\(pipe\) first"):
        export_graphs(pipe, tmp_path / "graphs", CALL(), format="torch")


def with_lora():
    pipe = tiny_pipeline()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return pipe


def test_adapters_become_part_of_the_weights(tmp_path):
    pipe = with_lora()
    before = copy.deepcopy(pipe.unet.state_dict())
    expected = latents(pipe)
    found = export_graphs(pipe, tmp_path / "graphs", CALL(), format="torch")
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert torch.equal(latents(pipe), expected)
    assert max(graph.largest_difference for graph in found.graphs.values()) < 1e-5
    assert torch.allclose(on_graphs(tmp_path / "graphs"), expected, atol=1e-4)
    nodes = torch.export.load(tmp_path / "graphs" / "full.pt2").graph.nodes
    assert not [node.name for node in nodes if "lora" in node.name and node.users]


def test_scale_of_adapters_in_the_call_is_refused(tmp_path):
    pipe = with_lora()
    unet, sample = pipe.unet, torch.zeros(2, 4, 8, 8)
    call = {"encoder_hidden_states": torch.zeros(2, 3, 8), "cross_attention_kwargs": {"scale": 0.5}}

    class Scaling:
        unet = pipe.unet
        scheduler = pipe.scheduler

        def __call__(self, **_):
            unet(sample, 1, **call)

    with pytest.raises(
        ValueError, match=r"adapters default become part of the weights, but the call scales them by 0.5"
    ):
        export_graphs(Scaling(), tmp_path / "graphs", format="torch")


def test_other_files_beside_graphs_are_kept(tmp_path):
    export(tmp_path / "graphs")
    (tmp_path / "graphs" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"contains other files than graphs, such as 'notes\.txt'"):
        export(tmp_path / "graphs", overwrite=True)
    assert (tmp_path / "graphs" / "notes.txt").read_text() == "mine"


def test_graph_damaged_after_an_interruption_is_written_again(tmp_path, written):
    written.stop_at.append("shallow")
    with pytest.raises(Interrupted):
        export(tmp_path / "graphs")
    (tmp_path / "graphs" / ".unfinished" / "full.pt2").write_bytes(b"no")
    written.stop_at.clear()
    export(tmp_path / "graphs")
    assert written.names == ["full", "shallow", "full", "shallow"]


def test_existing_folder_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "graphs").symlink_to(tmp_path / "disk")
    unet = export(tmp_path / "graphs")
    assert torch.equal(on_graphs(tmp_path / "graphs"), latents(tiny_pipeline(unet)))


def keeping(unet):
    class Keeping:
        def __init__(self):
            self.maps = []

        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    unet.set_attn_processor(Keeping())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda unet: unet.train(), "is in training mode"),
        (lambda unet: unet.to("meta"), "is offloaded or quantized"),
        (keeping, r"processors that keep state between calls \(Keeping\)"),
    ],
    ids=["training", "offloaded", "attention maps"],
)
def test_denoisers_that_graphs_cannot_replace_are_refused(tmp_path, change, message):
    unet = tiny_unet()
    call = CallReader.of(unet)((torch.zeros(2, 4, 8, 8), 1), {"encoder_hidden_states": torch.zeros(2, 3, 8)})
    change(unet)
    options = GraphOptions("torch")
    with pytest.raises(ValueError, match=message), traced(unet, 0, WantedGraph("full", call), options, print):
        pass
