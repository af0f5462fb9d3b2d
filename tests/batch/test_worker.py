"""A worker with the bundled model: which images are bit-identical, and which are only close."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import socket
from dataclasses import replace
from itertools import count

import pytest
import torch
from PIL import Image

from DeepCache import DeepCacheConfig
from DeepCache.batch import BatchRow, BatchSettings
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.record import decode_record, image_path
from DeepCache.batch.worker import PipelineWorker, row_settings, shared_settings
from DeepCache.engine.attach import apply_deepcache
from DeepCache.metrics import psnr
from DeepCache.models import MODELS, Lora, load_embeddings, load_loras, load_pipeline
from DeepCache.models.identity import weights_hash
from tests.models.small_adapters import save_embedding, save_lora

SETTINGS = BatchSettings(steps=6, cache=DeepCacheConfig(3))
# The bits of some of these depend on the batch, at least on x86.
ROWS = [
    BatchRow(f"{number:012}", prompt=prompt)
    for number, prompt in enumerate(("a green square", "two rings", "a red circle", "a blue star", "a green square"), 2)
]
# Measured: 89 dB, which is a difference of 1 in one channel of some pixels.
CLOSE = 70.0


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def worker(tmp_path):
    """Makes workers, each with a folder of its own."""

    def make(settings=SETTINGS, batch=1, expected=None, threads=1):
        folder = BatchFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        folder.make()
        worker = PipelineWorker(settings, folder, batch, threads, "cpu", None, False, expected)
        worker.folder = folder
        return worker

    return make


def images(worker, rows, batch=1):
    """The files of rows by their ids, generated in batches."""
    found = {}
    for first in range(0, len(rows), batch):
        for record in worker.generate(rows[first : first + batch]):
            assert not record.error
            found[record.id] = worker.folder.read(record.path)
    return found


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def broken_pipe(worker, error):
    """Makes the U-Net fail once, in its second step."""
    steps = count(1)

    def fail(*_):
        if next(steps) == 2:
            raise error

    worker._pipe.unet.register_forward_pre_hook(fail)


def test_images_are_those_of_the_pipeline_with_deepcache(worker):
    row = replace(ROWS[0], seed=5, negative_prompt="a star", size=(72, 64))
    settings = replace(SETTINGS, guidance=2.5)
    (data,) = images(worker(settings), [row]).values()
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    apply_deepcache(pipe, SETTINGS.cache)
    expected = pipe(
        row.prompt,
        negative_prompt="a star",
        num_inference_steps=6,
        guidance_scale=2.5,
        width=72,
        height=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert pixels(data).tobytes() == expected.convert("RGB").tobytes()


def test_records_describe_the_images(worker):
    one = worker()
    row = replace(ROWS[0], row_id="first", seed=5, negative_prompt="a star", size=(72, 64))
    (record,) = one.generate([row])
    data = one.folder.read(record.path)
    assert (record.id, record.row_id, record.prompt, record.negative_prompt) == (row.id, "first", row.prompt, "a star")
    assert (record.seed, record.width, record.height, record.error) == (5, 72, 64, "")
    assert (record.full_steps, record.shallow_steps, record.skipped_steps, record.batch) == (2, 4, 0, 1)
    assert (record.path, record.bytes) == (image_path(row.id), len(data))
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert (record.host, record.model) == (socket.gethostname(), one.facts["model"])
    assert record.seconds > 0
    common = json.loads(record.settings)
    assert common == json.loads(json.dumps(shared_settings(SETTINGS))) | one.facts
    assert one.facts["guidance"] == MODELS["shapes"].guidance
    assert decode_record(data, row.id) == replace(record, seconds=None, batch=None, host="")


@pytest.mark.parametrize("batch", [1, 4])
def test_bits_do_not_depend_on_order_and_batch_composition(worker, batch):
    together = images(worker(batch=batch), ROWS, batch)
    assert len(set(together.values())) == 5
    assert images(worker(batch=batch), ROWS[::-1], batch) == together
    one = worker(batch=batch)
    for row in (*ROWS[2:], *ROWS[:2]):
        assert images(one, [row], batch) == {row.id: together[row.id]}


def test_the_pipeline_is_always_called_with_a_full_batch(worker):
    one = worker(batch=4)
    called = []
    one._pipe.unet.register_forward_pre_hook(lambda _, arguments: called.append(len(arguments[0])))
    for first, last in ((0, 1), (1, 4), (4, 5)):
        assert len(images(one, ROWS[first:last], 4)) == last - first
    # Twice, for guidance.
    assert called == [8] * 6 * 3


@pytest.mark.parametrize(("first", "second"), [({"batch": 1}, {"batch": 4}), ({"threads": 1}, {"threads": 2})])
def test_images_of_other_batch_sizes_and_threads_are_close(worker, first, second):
    try:
        found = [images(worker(**options), ROWS, options.get("batch", 1)) for options in (first, second)]
    finally:
        torch.set_num_threads(1)
    one, two = ([pixels(files[row.id]) for row in ROWS] for files in found)
    assert psnr(one, two).min() > CLOSE


@pytest.mark.parametrize("scheduler", ["lcm", "ddpm"])
def test_the_noise_of_each_step_depends_on_the_seed_of_the_row(worker, scheduler):
    settings = replace(SETTINGS, scheduler=scheduler)
    together = images(worker(settings, batch=2), ROWS[:2], 2)
    assert images(worker(settings, batch=2), ROWS[1::-1], 2) == together
    assert images(worker(settings, batch=2), ROWS[1:2], 2) == {ROWS[1].id: together[ROWS[1].id]}


def test_images_depend_on_the_seed(worker):
    rows = [BatchRow(letter * 12, prompt="a red circle", seed=seed) for letter, seed in (("a", 1), ("b", 2), ("c", 1))]
    one, two, again = (pixels(data).tobytes() for data in images(worker(batch=4), rows, 4).values())
    assert one == again
    assert one != two


def test_negative_prompts_of_rows_and_of_the_settings(worker):
    rows = [replace(ROWS[0], seed=1), replace(ROWS[1], prompt=ROWS[0].prompt, seed=1, negative_prompt="a star")]
    settings = replace(SETTINGS, negative_prompt="a green ring")
    together = images(worker(settings, batch=2), rows, 2)
    one = worker(settings, batch=2)
    assert [images(one, [row], 2) for row in rows] == [{row.id: together[row.id]} for row in rows]
    assert len({pixels(data).tobytes() for data in together.values()}) == 2
    (record,) = worker(settings).generate(rows[:1])
    assert record.negative_prompt == "a green ring"


@pytest.mark.parametrize(
    ("size", "error"),
    [
        ((64, 65), "height must be a multiple of 8 for this model, got 65; nearest: 64 and 72"),
        ((0, 0), "width must be a multiple of 8 for this model, got 0; nearest: 8"),
    ],
)
def test_a_row_that_the_model_cannot_generate_has_an_error(worker, size, error):
    bad, good = worker(batch=2).generate([replace(ROWS[0], size=size), ROWS[1]])
    assert (bad.id, bad.prompt, bad.error, bad.path, bad.host) == (ROWS[0].id, ROWS[0].prompt, error, "", "")
    assert (good.id, good.error) == (ROWS[1].id, "")
    assert good.sha256 == worker(batch=2).generate(ROWS[1:2])[0].sha256


def test_existing_images_are_not_generated_again(worker, monkeypatch):
    one = worker(batch=2)
    (first,) = one.generate(ROWS[:1])
    calls = []
    monkeypatch.setattr(one, "_call", lambda rows, call=one._call: calls.append(rows) or call(rows))
    found, generated = one.generate(ROWS[:2])
    assert found == replace(first, seconds=None, batch=None, host="")
    assert generated.seconds is not None
    assert calls == [ROWS[1:2]]


def test_damaged_images_are_generated_again(worker):
    one = worker()
    (first,) = one.generate(ROWS[:1])
    one.folder.write(first.path, one.folder.read(first.path)[:-1])
    (again,) = one.generate(ROWS[:1])
    assert (again.sha256, again.host) == (first.sha256, socket.gethostname())


def test_a_failed_batch_is_generated_row_by_row_to_the_same_bits(worker):
    expected = images(worker(batch=4), ROWS[:3], 4)
    one = worker(batch=4)
    broken_pipe(one, RuntimeError("a kernel"))
    records = one.generate(ROWS[:3])
    assert [record.id for record in records] == [row.id for row in ROWS[:3]]
    assert {record.id: one.folder.read(record.path) for record in records} == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "not have enough memory for this image. Use a smaller size or batch",
        ),
        (RuntimeError("a\n  kernel"), "RuntimeError: a kernel"),
        (IndexError("x" * 9999), "IndexError: xxx"),
    ],
    ids=["memory", "kernel", "long"],
)
def test_an_error_of_the_pipeline_is_recorded_and_the_next_row_is_generated(worker, error, message):
    expected = images(worker(), ROWS[1:2])
    one = worker()
    broken_pipe(one, error)
    (record,) = one.generate(ROWS[:1])
    assert message in record.error
    assert len(record.error) <= 500
    assert (record.path, record.sha256, record.seconds) == ("", "", None)
    assert one.folder.read(image_path(ROWS[0].id)) is None
    assert images(one, ROWS[1:2]) == expected


def failing(worker, monkeypatch, fails, error=None):
    """Makes calls fail whose first prompt is one of these."""

    def call(rows, call=worker._call):
        if rows[0].prompt in fails:
            raise error or RuntimeError("a kernel")
        return call(rows)

    monkeypatch.setattr(worker, "_call", call)


def bad_rows(many):
    return [BatchRow(f"bad{number:09}", prompt="bad") for number in range(many)]


def test_eight_consecutive_failures_stop_the_worker(worker, monkeypatch):
    one = worker()
    failing(one, monkeypatch, ["bad"])
    rows = bad_rows(8)
    for row in rows[:7]:
        (record,) = one.generate([row])
        assert record.error == "RuntimeError: a kernel"
    with pytest.raises(RuntimeError, match=r"8 consecutive rows failed on .*, the last one with RuntimeError: a k"):
        one.generate(rows[7:])


def test_rows_without_enough_memory_do_not_stop_the_worker(worker, monkeypatch):
    one = worker()
    failing(one, monkeypatch, ["bad"], torch.OutOfMemoryError("CUDA out of memory"))
    for row in bad_rows(20):
        (record,) = one.generate([row])
        assert "enough memory" in record.error
    assert not one.generate(ROWS[:1])[0].error


def test_failures_that_are_not_consecutive_do_not_stop_the_worker(worker, monkeypatch):
    one = worker()
    failing(one, monkeypatch, ["bad"])
    rows = bad_rows(14)
    for row in rows[:7]:
        one.generate([row])
    assert not one.generate(ROWS[:1])[0].error
    for row in rows[7:]:
        assert one.generate([row])[0].error


def test_an_image_that_cannot_be_written_is_not_an_error_of_the_row(worker, monkeypatch):
    one = worker(batch=2)

    def fail(*_):
        raise OSError("a full disk")

    monkeypatch.setattr(BatchFolder, "write", fail)
    with pytest.raises(OSError, match="a full disk"):
        one.generate(ROWS[:2])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_scheduler_whose_noise_does_not_depend_on_the_seed_is_refused(worker):
    with pytest.raises(ValueError, match="DPMSolverSDEScheduler generates noise that does not depend on the seed"):
        worker(replace(SETTINGS, scheduler="DPMSolverSDEScheduler"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (64, 65)}, "multiple of 8"),
        ({"steps": 1001}, "steps must be <= 1000"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"scheduler": "eulr"}, "eulr"),
        ({"cache": DeepCacheConfig(cache_branch_id=99)}, "cache_branch_id"),
    ],
)
def test_settings_that_the_model_does_not_support_are_refused(worker, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        worker(replace(SETTINGS, **changes)).generate(ROWS[:1])


def test_every_worker_has_the_expected_facts(worker):
    facts = json.loads(json.dumps(worker().facts))
    assert facts.keys() == {"model", "guidance", "pipeline", "scheduler", "dtype"}
    assert (facts["pipeline"], facts["dtype"]) == ("StableDiffusionPipeline", "float32")
    assert facts["model"] == weights_hash(load_pipeline("shapes", device="cpu"))
    assert worker(expected=facts).facts == facts
    assert worker(replace(SETTINGS, scheduler="ddim", guidance=2.0, dtype="float32"), expected=facts).facts == facts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 3.0}, "guidance was 2.0 and is 3.0 now"),
        ({"scheduler": "euler"}, "scheduler.class was 'DDIMScheduler' and is 'EulerDiscreteScheduler' now"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is 'bfloat16' now"),
    ],
)
def test_other_facts_are_refused(worker, changes, message):
    facts = worker().facts
    with pytest.raises(ValueError, match=r"differs from the model that the folder '.*' was started with: ") as error:
        worker(replace(SETTINGS, **changes), expected=facts)
    assert message in str(error.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_the_hash_of_the_model_depends_on_all_its_weights(part):
    pipe = load_pipeline("shapes", device="cpu")
    before = weights_hash(pipe)
    with torch.no_grad():
        next(getattr(pipe, part).parameters()).add_(1)
    assert weights_hash(pipe) != before


@pytest.mark.parametrize("batch", [1, 2])
def test_an_image_of_nan_is_an_error_of_its_row_alone(worker, batch):
    one = worker(replace(SETTINGS, guidance=1.0), batch=batch)

    def break_green_squares(module, args, kwargs, output):
        broken = kwargs["encoder_hidden_states"]
        same = torch.isclose(broken, green, atol=1e-4).flatten(1).all(1)
        return (torch.where(same[:, None, None, None], torch.nan, output[0]),)

    green, _ = one._pipe.encode_prompt("a green square", "cpu", 1, False)
    one._pipe.unet.register_forward_hook(break_green_squares, with_kwargs=True)
    records = [record for first in range(0, 4, batch) for record in one.generate(ROWS[first : first + batch])]
    assert [bool(record.error) for record in records] == [True, False, False, False]
    failed = records[0]
    assert "produced NaN or infinite values" in failed.error
    assert "float32 or bfloat16, run the VAE in float32" in failed.error
    assert failed.path == ""
    assert one.folder.read(image_path(failed.id)) is None


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Two LoRAs, and a copy of the first one at another path."""
    first, second = (save_lora(tmp_path_factory.mktemp("lora"), seed) for seed in (0, 1))
    copied = tmp_path_factory.mktemp("elsewhere") / "copied.safetensors"
    copied.write_bytes(first.read_bytes())
    return [str(path) for path in (first, second, copied)]


def test_loras_and_embeddings_change_the_images_and_are_distinguished_from_others(worker, loras, tmp_path_factory):
    first, second, copied = loras
    mine = tmp_path_factory.mktemp("embedding") / "mine.safetensors"
    settings = replace(SETTINGS, loras=(Lora(first, 0.5),), embeddings=(str(save_embedding(mine)),))
    # Ray pickles them.
    settings = pickle.loads(pickle.dumps(settings))
    one = worker(settings)
    row = BatchRow("0" * 12, prompt="a mine circle", seed=1)
    (data,) = images(one, [row]).values()
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    load_loras(pipe, settings.loras)
    load_embeddings(pipe, settings.embeddings)
    apply_deepcache(pipe, SETTINGS.cache)
    generator = torch.Generator().manual_seed(1)
    expected = pipe(
        row.prompt, num_inference_steps=6, guidance_scale=MODELS["shapes"].guidance, generator=generator
    ).images[0]
    assert pixels(data).tobytes() == expected.convert("RGB").tobytes()

    facts = json.loads(json.dumps(one.facts))
    plain = worker().facts
    assert plain == {name: value for name, value in facts.items() if name not in ("loras", "embeddings")}
    assert facts["loras"][0][1] == 0.5
    # The same file at another path.
    assert worker(replace(settings, loras=(Lora(copied, 0.5),)), expected=facts).facts == facts
    others = [
        (replace(settings, loras=(Lora(second, 0.5),)), "loras was "),
        (replace(settings, loras=(Lora(first, 1.0),)), "loras was "),
        (replace(settings, loras=()), "loras was "),
        (replace(settings, embeddings=()), "embeddings was "),
    ]
    save_embedding(mine, value=0.25)
    for other, message in (*others, (settings, "embeddings was ")):
        with pytest.raises(ValueError, match=message):
            worker(other, expected=facts)
    with pytest.raises(ValueError, match="loras was None and is "):
        worker(replace(SETTINGS, loras=(Lora(first),)), expected=plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loras": (Lora("nowhere.safetensors"),)}, "there is no LoRA 'nowhere.safetensors'"),
        ({"embeddings": ("./nowhere.pt",)}, "there is no embedding './nowhere.pt'"),
    ],
)
def test_missing_adapters_are_reported_before_the_model_is_loaded(worker, monkeypatch, changes, message):
    monkeypatch.setattr("DeepCache.generation.prepare.load_pipeline", None)
    with pytest.raises(FileNotFoundError, match=message):
        worker(replace(SETTINGS, **changes))


def test_settings_of_rows_override_those_of_the_batch():
    settings = BatchSettings(negative_prompt="n", size=(64, 64), seed=3, steps=6, guidance=2.5, model="m", vae="v")
    job = row_settings(settings, BatchRow("0", prompt="x", negative_prompt="own", seed=7, size=(128, 64)))
    assert (job.negative_prompt, job.seed, job.size) == ("own", 7, (128, 64))
    plain = BatchRow("0", prompt="x")
    job = row_settings(settings, plain)
    assert (job.negative_prompt, job.seed, job.size) == ("n", plain.seed_for(3), (64, 64))
    assert (job.prompts, job.steps, job.guidance, job.model, job.vae) == (("x",), 6, 2.5, "m", "v")


def test_settings_that_images_depend_on_are_json_values():
    settings = BatchSettings(negative_prompt="n", steps=6, size=(64, 72), seed=3, cache=DeepCacheConfig(5))
    shared = {"negative_prompt": "n", "steps": 6, "size": "64x72", "seed": 3, "deepcache": DeepCacheConfig(5).to_dict()}
    assert json.loads(json.dumps(shared_settings(settings))) == shared
    assert shared_settings(replace(settings, vae_tiling=True)) == shared | {"vae_tiling": True}
