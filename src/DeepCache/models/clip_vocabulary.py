"""Writes the tokenizer of CLIP as the folder that transformers loads it from."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path

__all__ = ["write_tokenizer"]

_START, _END, _END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"


def write_tokenizer(folder: Path, *, pad: str = _END) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json` to a new folder.

    Args:
        folder: the folder.
        pad: the token that pads a prompt to 77 tokens.
    """
    data = (files("DeepCache.models") / "clip" / "merges.txt.gz").read_bytes()
    merges = gzip.decompress(data).decode("utf-8").splitlines()
    # A character per byte: the printable ones of Latin-1 stand for themselves and come first.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
    endings = [character + _END_OF_WORD for character in characters]
    symbols = [*characters, *endings, *(merge.replace(" ", "") for merge in merges), _START, _END]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": pad,
    }
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
