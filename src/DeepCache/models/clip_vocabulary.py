"""The tokenizer of CLIP, as the folder that transformers loads it from."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path

__all__ = ["write_tokenizer"]

_START, _END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"


def write_tokenizer(folder: Path, *, pad: str = _END) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer_config.json`.

    Args:
        folder: where to write them; it is created.
        pad: the token that fills a prompt up to 77 tokens.
    """
    folder.mkdir(parents=True)
    merges = _merges()
    vocabulary = {symbol: number for number, symbol in enumerate(_symbols(merges))}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": pad,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _merges() -> list[str]:
    data = (files("DeepCache.models") / "clip" / "merges.txt.gz").read_bytes()
    return gzip.decompress(data).decode("utf-8").splitlines()


def _symbols(merges: list[str]) -> list[str]:
    """The symbol of each id, in order."""
    single = _byte_symbols()
    return [
        *single,
        *(symbol + _END_OF_WORD for symbol in single),
        *(merge.replace(" ", "") for merge in merges),
        _START,
        _END,
    ]


def _byte_symbols() -> list[str]:
    """A printable character for each byte: the printable ones of Latin-1 stand for themselves and come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + number) for number in range(others))]
