"""Pipelines on graphs give the same latents as with the engine on their U-Net, bit by bit."""

from __future__ import annotations

import copy
import json
import shutil
import threading

import jsonschema
import pytest
import torch

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.export import description, export_graphs, load_graphs
from DeepCache.export.description import FILE, GraphSetDescription
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from tests.engine.tiny_pipeline import small_unet, tiny_pipeline, tiny_unet
from tests.export.runs import CALL, STEPS, latents, least_unet

CONFIGS = {
    "plain": None,
    "re-use": DeepCacheConfig(cache_interval=3, forecast="none"),
    "linear forecast": DeepCacheConfig(cache_interval=3, forecast="linear"),
    "limited forecast": DeepCacheConfig(cache_interval=2),
    "guidance reuse": DeepCacheConfig(cache_interval=3, guidance_reuse=True),
    "skipped": DeepCacheConfig(cache_interval=3, between="skipped", forecast="response"),
    "alternating": DeepCacheConfig(cache_interval=4, between="alternating"),
    "adaptive": DeepCacheConfig(cache_interval=4, between="skipped", skip_mode="adaptive", threshold=9.0),
}


@pytest.fixture(scope="module")
def on_graphs(exported):
    pipe = tiny_pipeline()
    pipe.unet = load_graphs(exported[0])
    return pipe


@pytest.mark.parametrize("name", CONFIGS)
def test_latents_and_statistics_are_those_of_the_engine(on_graphs, name):
    own, config = tiny_pipeline(), CONFIGS[name]
    if config is not None:
        engines = [apply_deepcache(pipe, config) for pipe in (own, on_graphs)]
    expected, found = latents(own), latents(on_graphs)
    remove_deepcache(on_graphs)
    assert torch.equal(found, expected)
    if config is not None:
        expected_stats, stats = (engine.stats for engine in engines)
        assert stats.pattern == expected_stats.pattern
        assert stats.bytes_kept == expected_stats.bytes_kept
        assert stats.mac_share == expected_stats.mac_share < 1


def test_helper_works_on_graphs(on_graphs):
    own, images = tiny_pipeline(), []
    for pipe in (own, on_graphs):
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=3, cache_branch_id=0)
        helper.enable()
        images.append(latents(pipe))
        helper.disable()
    assert torch.equal(*images)


def test_a_copy_shares_the_graphs(on_graphs):
    other = copy.copy(on_graphs)
    other.unet = copy.deepcopy(on_graphs.unet)
    apply_deepcache(other, DeepCacheConfig(cache_interval=3))
    expected = tiny_pipeline()
    assert torch.equal(latents(on_graphs), latents(expected))
    apply_deepcache(expected, DeepCacheConfig(cache_interval=3))
    assert torch.equal(latents(other), latents(expected))


def test_threads_do_not_mix_without_deepcache(on_graphs):
    unet, own = on_graphs.unet, tiny_unet()
    samples = [torch.full((2, 4, 8, 8), float(number)) for number in range(4)]
    text, found = torch.ones(2, 3, 8), {}

    def call(number):
        for _ in range(5):
            found[number] = unet(samples[number], 7, encoder_hidden_states=text).sample

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        assert all(torch.equal(found[number], own(samples[number], 7, text).sample) for number in range(4))


def test_deeper_branch_is_refused(on_graphs):
    with pytest.raises(ValueError, match="cache_branch_id must be between 0 and 0"):
        apply_deepcache(on_graphs, DeepCacheConfig(cache_branch_id=2))


def test_shallower_branch_is_refused(tmp_path):
    export_graphs(tiny_pipeline(), tmp_path / "graphs", CALL(), DeepCacheConfig(cache_branch_id=1), format="torch")
    pipe = tiny_pipeline()
    pipe.unet = load_graphs(tmp_path / "graphs")
    with pytest.raises(ValueError, match="cache_branch_id must be 1 for these graphs, got 0"):
        apply_deepcache(pipe, DeepCacheConfig(cache_branch_id=0))
    config, own = DeepCacheConfig(cache_branch_id=1, cache_interval=3), tiny_pipeline()
    for each in (pipe, own):
        apply_deepcache(each, config)
    assert torch.equal(latents(pipe), latents(own))


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"size": 72}, r"sample has shape \(2, 4, 9, 9\), but it was exported for \(2, 4, 8, 8\)"),
        ({"batch": 2}, r"sample has shape \(4, 4, 8, 8\)"),
        ({"guidance_scale": 1.0}, r"sample has shape \(1, 4, 8, 8\)"),
    ],
)
def test_calls_of_other_sizes_are_refused(on_graphs, others, reason):
    with pytest.raises(ValueError, match=f"no graph in .* fits this call .*{reason}"):
        latents(on_graphs, **others)


def test_other_arguments_are_refused(on_graphs):
    sample, text = torch.zeros(2, 4, 8, 8), torch.ones(2, 3, 8)
    with pytest.raises(ValueError, match="exported without mid_block_additional_residual"):
        on_graphs.unet(sample, 1, encoder_hidden_states=text, mid_block_additional_residual=torch.zeros(2, 16, 4, 4))
    scaled = {"encoder_hidden_states": text, "cross_attention_kwargs": {"scale": 0.5}}
    with pytest.raises(ValueError, match=r"cross_attention_kwargs\.scale is 0.5, but it was exported with None"):
        on_graphs.unet(sample, 1, **scaled)
    with pytest.raises(ValueError, match="it requires encoder_hidden_states, missing in this call"):
        on_graphs.unet(sample, 1)


def test_one_timestep_per_sample(on_graphs):
    sample, text, own = torch.randn(2, 4, 8, 8), torch.ones(2, 3, 8), tiny_unet()
    steps = torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.equal(on_graphs.unet(sample, steps, text).sample, own(sample, steps, text).sample)


def test_changes_of_graphs_are_refused(on_graphs):
    with pytest.raises(AttributeError, match="has no 'load_lora_adapter': its graphs cannot be changed"):
        on_graphs.unet.load_lora_adapter({})
    with pytest.raises(ValueError, match="compiled by their runtime"):
        on_graphs.unet.compile()


def test_plans_are_checked_against_the_original_model(on_graphs):
    schedule = StepSchedule(tuple(Step(number % 2 == 0) for number in range(STEPS)))
    own = Plan(schedule, fingerprint(tiny_unet()), scheduler_settings(on_graphs.scheduler), guidance=(7.5, 7.5))
    engine = apply_deepcache(on_graphs, DeepCacheConfig(plan=own))
    latents(on_graphs)
    assert engine.stats.pattern == "F.F.F.F"
    remove_deepcache(on_graphs)
    other = Plan(schedule, fingerprint(tiny_unet(seed=1)), {"class": "DDIMScheduler", "config": {}})
    with pytest.raises(ValueError, match="this UNet2DConditionModel has other weights"):
        apply_deepcache(on_graphs, DeepCacheConfig(plan=other))


def test_description_matches_schema_and_graphs(exported):
    folder, found, stages = exported
    read = json.loads((folder / FILE).read_text(encoding="utf-8"))
    schema = json.loads(description.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read, schema)
    assert GraphSetDescription.read(folder) == found
    assert read["branch"] == 0
    assert read["steps"] == ["full", "shallow", "shallow", "full", "shallow", "shallow", "full"]
    assert read["forecast_order"] == 1
    assert read["fingerprint"] == fingerprint(tiny_unet())
    assert {"torch", "diffusers", "DeepCache"} <= read["versions"].keys()
    shapes = {
        name: {each["name"]: each["shape"] for each in graph["inputs"] + graph["outputs"]}
        for name, graph in read["graphs"].items()
    }
    inputs = {"sample": [2, 4, 8, 8], "timestep": [2], "encoder_hidden_states": [2, 3, 8]}
    half = {name: [1, *shape[1:]] for name, shape in inputs.items()}
    assert shapes == {
        "full": inputs | {"prediction": [2, 4, 8, 8], "deep_out": [2, 8, 8, 8]},
        "shallow": inputs | {"deep_in": [2, 8, 8, 8], "prediction": [2, 4, 8, 8]},
        "half": half | {"deep_in": [1, 8, 8, 8], "prediction": [1, 4, 8, 8]},
    }
    assert all(graph["largest_difference"] == 0 for graph in read["graphs"].values())
    assert [text for text in stages if text.endswith("writing")] == [f"{name}: writing" for name in read["graphs"]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / FILE).unlink(),
            "is not a folder of exported graphs: deepcache-graphs.json is missing",
        ),
        (lambda folder: (folder / FILE).write_text("{"), "does not describe graphs of DeepCache: .*Export again"),
        (lambda folder: (folder / FILE).write_text("[]"), "does not describe graphs of DeepCache: .*Export again"),
        (lambda folder: (folder / "full.pt2").unlink(), "the file 'full.pt2' in .* is missing. Export again"),
        (
            lambda folder: (folder / "full.pt2").write_bytes(b"no"),
            "cannot load the graph 'full' .*'full.pt2' is damaged. Export again",
        ),
    ],
    ids=["no description", "no JSON", "no object", "no graph", "a damaged graph"],
)
def test_damaged_folders_are_refused(exported, tmp_path, damage, message):
    shutil.copytree(exported[0], tmp_path / "graphs")
    damage(tmp_path / "graphs")
    with pytest.raises((OSError, ValueError), match=message):
        load_graphs(tmp_path / "graphs")


def test_other_version_of_description_is_refused(exported, tmp_path):
    values = json.loads((exported[0] / FILE).read_text(encoding="utf-8"))
    (tmp_path / FILE).write_text(json.dumps(values | {"deepcache_graphs": 99}))
    with pytest.raises(ValueError, match="its version is 99, and this DeepCache reads 1"):
        load_graphs(tmp_path)


def test_dynamic_sizes_must_match_each_other(tmp_path):
    export_graphs(tiny_pipeline(least_unet()), tmp_path / "graphs", CALL(), format="torch", dynamic=True)
    unet, own = load_graphs(tmp_path / "graphs"), tiny_pipeline(least_unet()).unet
    text = torch.ones(3, 5, 8)
    with torch.no_grad():
        sample = torch.randn(3, 4, 12, 20)
        assert torch.equal(unet(sample, 1, text).sample, own(sample, 1, text).sample)
    with pytest.raises(ValueError, match=r"encoder_hidden_states has shape \(1, 5, 8\), which does not match a sample"):
        unet(sample, 1, text[:1])


def test_dynamic_sizes_must_be_multiples(tmp_path):
    export_graphs(tiny_pipeline(small_unet()), tmp_path / "graphs", CALL(), format="torch", dynamic=True)
    with pytest.raises(ValueError, match=r"height and width of the sample must be multiples of 2, got \(9, 8\)"):
        load_graphs(tmp_path / "graphs")(torch.zeros(2, 4, 9, 8), 1, torch.zeros(2, 3, 8))


def test_open_sizes_need_an_example_of_two(tmp_path):
    with pytest.raises(ValueError, match="require an example with two samples or more"):
        export_graphs(
            tiny_pipeline(least_unet()), tmp_path / "graphs", CALL(guidance_scale=1.0), format="torch", dynamic=True
        )
