"""A worker with the shipped model: which pictures are the same to the last bit, and which are only close."""

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
from DeepCache.batch.picture import picture_path, picture_record
from DeepCache.batch.worker import WorkerSettings, loaded_model
from DeepCache.engine.attach import apply_deepcache
from DeepCache.metrics import psnr
from DeepCache.models import MODELS, Lora, load_embeddings, load_loras, load_pipeline
from tests.models.small_adapters import save_embedding, save_lora

SETTINGS = BatchSettings(steps=6, cache=DeepCacheConfig(3))
# Chosen since the bits of some of them differ from batch to batch, at least on x86.
ROWS = [
    BatchRow(f"{number:012}", prompt=prompt)
    for number, prompt in enumerate(("a green square", "two rings", "a red circle", "a blue star", "a green square"), 2)
]
# Measured: 89 dB, one step of one colour in some pixels.
CLOSE = 70.0


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def worker(tmp_path):
    """Makes workers, each with a folder of its own where it says no other."""

    def make(settings=SETTINGS, batch=1, expected=None, folder=None, threads=1):
        place = folder or BatchFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        place.make()
        worker = WorkerSettings(settings, place, batch, threads, "cpu")(expected)
        worker.folder = place
        return worker

    return make


def pictures(worker, rows, batch=1):
    """The files of rows, drawn some at a time, by their ids."""
    found = {}
    for first in range(0, len(rows), batch):
        for record in worker.draw(rows[first : first + batch]):
            assert not record.error
            found[record.id] = worker.folder.read(record.path)
    return found


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def broken_pipe(worker, error):
    """Lets the U-Net fail once, in its second step."""
    steps = count(1)

    def fail(*_):
        if next(steps) == 2:
            raise error

    worker._pipe.unet.register_forward_pre_hook(fail)


def test_picture_is_that_of_the_pipeline_with_deepcache(worker):
    row = replace(ROWS[0], seed=5, negative_prompt="a star", size=(72, 64))
    settings = replace(SETTINGS, guidance=2.5)
    (data,) = pictures(worker(settings), [row]).values()
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


def test_record_tells_what_was_drawn(worker):
    one = worker()
    row = replace(ROWS[0], row_id="first", seed=5, negative_prompt="a star", size=(72, 64))
    (record,) = one.draw([row])
    data = one.folder.read(record.path)
    assert (record.id, record.row_id, record.prompt, record.negative_prompt) == (row.id, "first", row.prompt, "a star")
    assert (record.seed, record.width, record.height, record.error) == (5, 72, 64, "")
    assert (record.full_steps, record.shallow_steps, record.skipped_steps, record.batch) == (2, 4, 0, 1)
    assert (record.path, record.bytes) == (picture_path(row.id), len(data))
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert (record.host, record.model) == (socket.gethostname(), one.facts["model"])
    assert record.seconds > 0
    common = json.loads(record.settings)
    assert common == json.loads(json.dumps(SETTINGS.to_dict())) | one.facts
    assert one.facts["guidance"] == MODELS["shapes"].guidance
    assert picture_record(data, row.id) == replace(record, seconds=None, batch=None, host="")


@pytest.mark.parametrize("batch", [1, 4])
def test_bits_are_the_same_in_any_company_and_order_and_after_any_number_of_others(worker, batch):
    together = pictures(worker(batch=batch), ROWS, batch)
    assert len(set(together.values())) == 5
    assert pictures(worker(batch=batch), ROWS[::-1], batch) == together
    one = worker(batch=batch)
    for row in (*ROWS[2:], *ROWS[:2]):
        assert pictures(one, [row], batch) == {row.id: together[row.id]}


def test_pipeline_is_always_called_with_a_whole_batch(worker):
    one = worker(batch=4)
    called = []
    one._pipe.unet.register_forward_pre_hook(lambda _, arguments: called.append(len(arguments[0])))
    for first, last in ((0, 1), (1, 4), (4, 5)):
        assert len(pictures(one, ROWS[first:last], 4)) == last - first
    # Twice, for guidance.
    assert called == [8] * 6 * 3


def test_pictures_of_another_batch_are_close(worker):
    alone, together = (pictures(worker(batch=batch), ROWS, batch) for batch in (1, 4))
    first, second = ([pixels(files[row.id]) for row in ROWS] for files in (alone, together))
    assert psnr(first, second).min() > CLOSE


def test_pictures_of_other_threads_are_close(worker):
    try:
        one, two = (pictures(worker(threads=threads), ROWS) for threads in (1, 2))
    finally:
        torch.set_num_threads(1)
    first, second = ([pixels(files[row.id]) for row in ROWS] for files in (one, two))
    assert psnr(first, second).min() > CLOSE


@pytest.mark.parametrize("scheduler", ["lcm", "ddpm"])
def test_noise_of_each_step_is_of_the_rows_own_generator(worker, scheduler):
    settings = replace(SETTINGS, scheduler=scheduler)
    together = pictures(worker(settings, batch=2), ROWS[:2], 2)
    assert pictures(worker(settings, batch=2), ROWS[1::-1], 2) == together
    assert pictures(worker(settings, batch=2), ROWS[1:2], 2) == {ROWS[1].id: together[ROWS[1].id]}


def test_same_prompt_with_another_seed_is_another_picture(worker):
    rows = [BatchRow(letter * 12, prompt="a red circle", seed=seed) for letter, seed in (("a", 1), ("b", 2), ("c", 1))]
    one, two, again = (pixels(data).tobytes() for data in pictures(worker(batch=4), rows, 4).values())
    assert one == again
    assert one != two


def test_rows_with_and_without_negative_prompts_keep_their_own(worker):
    rows = [replace(ROWS[0], seed=1), replace(ROWS[1], prompt=ROWS[0].prompt, seed=1, negative_prompt="a star")]
    settings = replace(SETTINGS, negative_prompt="a green ring")
    together = pictures(worker(settings, batch=2), rows, 2)
    one = worker(settings, batch=2)
    assert [pictures(one, [row], 2) for row in rows] == [{row.id: together[row.id]} for row in rows]
    assert len({pixels(data).tobytes() for data in together.values()}) == 2
    (record,) = worker(settings).draw(rows[:1])
    assert record.negative_prompt == "a green ring"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": (64, 65)}, "height must be a multiple of 8 for this model, got 65; nearest: 64 and 72"),
        ({"size": (0, 0)}, "width must be a multiple of 8 for this model, got 0; nearest: 8"),
    ],
)
def test_row_that_the_model_cannot_draw_is_told_and_stops_none(worker, changes, said):
    one = worker(batch=2)
    bad, good = one.draw([replace(ROWS[0], **changes), ROWS[1]])
    assert (bad.id, bad.prompt, bad.error, bad.path, bad.host) == (ROWS[0].id, ROWS[0].prompt, said, "", "")
    assert (good.id, good.error) == (ROWS[1].id, "")
    assert good.sha256 == worker(batch=2).draw(ROWS[1:2])[0].sha256


def test_picture_that_is_there_is_not_drawn_again(worker, monkeypatch):
    one = worker(batch=2)
    (first,) = one.draw(ROWS[:1])
    calls = []
    monkeypatch.setattr(one, "_call", lambda rows, call=one._call: calls.append(rows) or call(rows))
    found, drawn = one.draw(ROWS[:2])
    assert found == replace(first, seconds=None, batch=None, host="")
    assert drawn.seconds is not None
    assert calls == [ROWS[1:2]]


def test_picture_that_is_there_but_broken_is_drawn_again(worker):
    one = worker()
    (first,) = one.draw(ROWS[:1])
    one.folder.write(first.path, one.folder.read(first.path)[:-1])
    (again,) = one.draw(ROWS[:1])
    assert (again.sha256, again.host) == (first.sha256, socket.gethostname())


def test_batch_that_fails_is_drawn_row_by_row_to_the_same_bits(worker):
    expected = pictures(worker(batch=4), ROWS[:3], 4)
    one = worker(batch=4)
    broken_pipe(one, RuntimeError("a kernel"))
    records = one.draw(ROWS[:3])
    assert [record.id for record in records] == [row.id for row in ROWS[:3]]
    assert {record.id: one.folder.read(record.path) for record in records} == expected


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "not enough memory for this; try a smaller size, batch or dtype",
        ),
        (RuntimeError("a\n  kernel"), "RuntimeError: a kernel"),
        (IndexError("x" * 9999), "IndexError: xxx"),
    ],
    ids=["memory", "kernel", "long"],
)
def test_error_of_the_pipeline_is_the_rows_and_the_next_one_is_drawn(worker, error, said):
    expected = pictures(worker(), ROWS[1:2])
    one = worker()
    broken_pipe(one, error)
    (record,) = one.draw(ROWS[:1])
    assert said in record.error
    assert len(record.error) <= 500
    assert (record.path, record.sha256, record.seconds) == ("", "", None)
    assert one.folder.read(picture_path(ROWS[0].id)) is None
    assert pictures(one, ROWS[1:2]) == expected


def failing(worker, monkeypatch, fails, error=None):
    """Lets calls fail whose first row's prompt is one of these."""

    def call(rows, call=worker._call):
        if rows[0].prompt in fails:
            raise error or RuntimeError("a kernel")
        return call(rows)

    monkeypatch.setattr(worker, "_call", call)


def bad_rows(many):
    return [BatchRow(f"bad{number:09}", prompt="bad") for number in range(many)]


def test_eight_rows_that_fail_in_succession_stop_the_worker(worker, monkeypatch):
    one = worker()
    failing(one, monkeypatch, ["bad"])
    rows = bad_rows(8)
    for row in rows[:7]:
        (record,) = one.draw([row])
        assert record.error == "RuntimeError: a kernel"
    with pytest.raises(RuntimeError, match=r"8 rows in succession cannot be drawn on .* because of RuntimeError: a k"):
        one.draw(rows[7:])


def test_rows_that_are_too_large_do_not_stop_the_worker(worker, monkeypatch):
    one = worker()
    failing(one, monkeypatch, ["bad"], torch.OutOfMemoryError("CUDA out of memory"))
    for row in bad_rows(20):
        (record,) = one.draw([row])
        assert "not enough memory" in record.error
    assert not one.draw(ROWS[:1])[0].error


def test_rows_that_fail_with_good_ones_between_do_not_stop_the_worker(worker, monkeypatch):
    one = worker()
    failing(one, monkeypatch, ["bad"])
    rows = bad_rows(14)
    for row in rows[:7]:
        one.draw([row])
    assert not one.draw(ROWS[:1])[0].error
    for row in rows[7:]:
        assert one.draw([row])[0].error


def test_picture_that_cannot_be_written_is_no_fault_of_the_row(worker, monkeypatch):
    one = worker(batch=2)

    def fail(*_):
        raise OSError("a full disk")

    monkeypatch.setattr(BatchFolder, "write", fail)
    with pytest.raises(OSError, match="a full disk"):
        one.draw(ROWS[:2])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_scheduler_whose_noise_has_no_seed_is_refused(worker):
    with pytest.raises(ValueError, match="DPMSolverSDEScheduler draws noise that no seed decides on"):
        worker(replace(SETTINGS, scheduler="DPMSolverSDEScheduler"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": (64, 65)}, "multiple of 8"),
        ({"steps": 1001}, "steps must be 1000 or fewer"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"scheduler": "eulr"}, "eulr"),
        ({"cache": DeepCacheConfig(cache_branch_id=99)}, "cache_branch_id"),
    ],
)
def test_settings_that_fit_no_row_are_refused_before_any_is_drawn(worker, changes, said):
    with pytest.raises((ValueError, OSError), match=said):
        worker(replace(SETTINGS, **changes)).draw(ROWS[:1])


def test_expected_facts_are_those_of_every_worker(worker):
    facts = json.loads(json.dumps(worker().facts))
    assert worker(expected=facts).facts == facts
    assert worker(replace(SETTINGS, scheduler="ddim", guidance=2.0, dtype="float32"), expected=facts).facts == facts


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guidance": 3.0}, "guidance is 2.0 there and 3.0 here"),
        ({"scheduler": "euler"}, "scheduler.class is 'DDIMScheduler' there and 'EulerDiscreteScheduler' here"),
        ({"dtype": "bfloat16"}, "dtype is 'float32' there and 'bfloat16' here"),
    ],
)
def test_worker_with_other_facts_is_refused(worker, changes, said):
    facts = worker().facts
    with pytest.raises(ValueError, match=r"is not what the folder '.*' was begun with: ") as error:
        worker(replace(SETTINGS, **changes), expected=facts)
    assert said in str(error.value)


def test_model_is_told_from_one_with_other_weights():
    pipe = load_pipeline("shapes", device="cpu")
    before, loaded = loaded_model(pipe)
    assert loaded_model(load_pipeline("shapes", device="cpu")) == (before, loaded)
    assert loaded == {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": loaded["scheduler"],
        "dtype": "float32",
    }
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        weight = next(part.parameters())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1)
        assert loaded_model(pipe)[0] != before
        with torch.no_grad():
            weight.copy_(kept)
    assert loaded_model(pipe)[0] == before


@pytest.mark.parametrize("batch", [1, 2])
def test_a_picture_of_nan_is_a_failed_row_and_the_others_are_generated(worker, batch):
    painter = worker(replace(SETTINGS, guidance=1.0), batch=batch)

    def break_green_squares(module, args, kwargs, output):
        broken = kwargs["encoder_hidden_states"]
        same = torch.isclose(broken, green, atol=1e-4).flatten(1).all(1)
        return (torch.where(same[:, None, None, None], torch.nan, output[0]),)

    green, _ = painter._pipe.encode_prompt("a green square", "cpu", 1, False)
    painter._pipe.unet.register_forward_hook(break_green_squares, with_kwargs=True)
    records = [record for first in range(0, 4, batch) for record in painter.draw(ROWS[first : first + batch])]
    assert [bool(record.error) for record in records] == [True, False, False, False]
    failed = records[0]
    assert "produced NaN or infinite values" in failed.error
    assert "float32 or bfloat16, run the VAE in float32" in failed.error
    assert failed.path == ""
    assert painter.folder.read(picture_path(failed.id)) is None


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Two LoRAs, and the first one once more in another place."""
    first, second = (save_lora(tmp_path_factory.mktemp("lora"), seed) for seed in (0, 1))
    copied = tmp_path_factory.mktemp("elsewhere") / "copied.safetensors"
    copied.write_bytes(first.read_bytes())
    return [str(path) for path in (first, second, copied)]


def test_loras_and_embeddings_make_the_pictures_and_are_told_from_others(worker, loras, tmp_path_factory):
    first, second, copied = loras
    mine = tmp_path_factory.mktemp("embedding") / "mine.safetensors"
    settings = replace(SETTINGS, loras=(Lora(first, 0.5),), embeddings=(str(save_embedding(mine)),))
    # As it reaches the workers of Ray.
    settings = pickle.loads(pickle.dumps(settings))
    one = worker(settings)
    row = BatchRow("0" * 12, prompt="a mine circle", seed=1)
    (data,) = pictures(one, [row]).values()
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
    # Elsewhere, the same files are called otherwise.
    assert worker(replace(settings, loras=(Lora(copied, 0.5),)), expected=facts).facts == facts
    others = [
        (replace(settings, loras=(Lora(second, 0.5),)), "loras is "),
        (replace(settings, loras=(Lora(first, 1.0),)), "loras is "),
        (replace(settings, loras=()), "loras is "),
        (replace(settings, embeddings=()), "embeddings is "),
    ]
    save_embedding(mine, value=0.25)
    for other, said in (*others, (settings, "embeddings is ")):
        with pytest.raises(ValueError, match=said):
            worker(other, expected=facts)
    with pytest.raises(ValueError, match="loras is None there and "):
        worker(replace(SETTINGS, loras=(Lora(first),)), expected=plain)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loras": (Lora("nowhere.safetensors"),)}, "there is no LoRA 'nowhere.safetensors'"),
        ({"embeddings": ("./nowhere.pt",)}, "there is no embedding './nowhere.pt'"),
    ],
)
def test_adapters_that_are_not_there_are_told_before_the_model_is_loaded(worker, monkeypatch, changes, said):
    monkeypatch.setattr("DeepCache.batch.worker.load_pipeline", None)
    with pytest.raises(FileNotFoundError, match=said):
        worker(replace(SETTINGS, **changes))
