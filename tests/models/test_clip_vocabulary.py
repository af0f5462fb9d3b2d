"""The tokenizer of checkpoints has the ids of CLIP."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from DeepCache.models.configurations import write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad="!")
    return folder


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A Photo  of a CAT", [320, 1125, 539, 320, 2368]),
        ("hello world!", [3306, 1002, 256]),
        ("", []),
    ],
)
def test_ids(folder, text, ids):
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer(text).input_ids == [49406, *ids, 49407]
    assert tokenizer(text, padding="max_length").input_ids == [49406, *ids, *[49407] * (76 - len(ids))]


def test_size_and_special_tokens(folder):
    first, second = (CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2"))
    assert len(first) == len(second) == 49408
    assert first.model_max_length == second.model_max_length == 77
    assert (first.bos_token_id, first.eos_token_id, first.pad_token_id) == (49406, 49407, 49407)
    assert second.pad_token_id == 0
    assert second("a cat", padding="max_length").input_ids[:6] == [49406, 320, 2368, 49407, 0, 0]
