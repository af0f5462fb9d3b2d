"""Processes that compute as if the processor had fewer instructions, for the measurements of CPUs.

A level limits which instructions the libraries of PyTorch use: oneDNN (convolutions, and linear layers in bfloat16 and
float16), ATen's own kernels and MKL (linear layers in float32). It does not make another processor of this one: clock,
caches, memory and the number of units are still its own. An older processor with the same instructions is slower, and
one with other units may do better: AMD's Zen 4 has AVX512_BF16 at full width and no AMX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["LEVELS", "NOTE", "Worker", "described", "rotated", "serve", "workers"]


def _level(onednn: str, aten: str) -> dict[str, str]:
    return {
        "ONEDNN_MAX_CPU_ISA": onednn,
        "ATEN_CPU_CAPABILITY": aten,
        "MKL_ENABLE_INSTRUCTIONS": aten.upper(),
    }


LEVELS = {
    "AVX2": _level("AVX2", "avx2"),
    "AVX512_CORE": _level("AVX512_CORE", "avx512"),
    "AVX512_CORE_BF16": _level("AVX512_CORE_BF16", "avx512"),
    "AVX512_CORE_AMX": _level("AVX512_CORE_AMX", "avx512"),
    "native": {},
}
"""The environment variables of each level by oneDNN's name for it. `native` is the processor as it is."""

NOTE = (
    "A level limits the instructions that PyTorch's libraries use on this processor. It is not another processor: the "
    "figures of one level can be compared with each other, and say less of an older processor that has no more."
)
"""What a result says of its levels."""


class Worker:
    """A process at a level that answers questions, one JSON value a line.

    Args:
        module: what it runs, with `--worker`; its `main` calls `serve`.
        level: a name in `LEVELS`.
        options: further arguments.
        threads: of its libraries. With one, neither the number of cores nor who else uses them matters.
    """

    def __init__(self, module: str, level: str, options: Sequence[str], threads: int = 1) -> None:
        count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment = {name: value for name, value in os.environ.items() if name not in LEVELS["AVX2"]}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--worker", *options],
            env=environment | LEVELS[level] | count,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question: Any) -> Any:
        """What it answers.

        Raises:
            RuntimeError: it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a worker ended with status {self._process.wait()}; its error is above")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        # Without questions it ends by itself.
        with self._process:
            pass


@contextmanager
def workers(module: str, levels: Sequence[str], options: Sequence[str] = ()) -> Iterator[dict[str, Worker]]:
    """A worker for each level, all alive at once, so that they can be asked in turn."""
    with ExitStack() as stack:
        found = {}
        for level in levels:
            found[level] = stack.enter_context(Worker(module, level, options))
        yield found


def serve(answer: Callable[..., Any]) -> None:
    """Answers the questions of a worker until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    # The output of libraries goes to stderr.
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), file=replies, flush=True)


def described() -> dict[str, Any]:
    """The level that PyTorch reports for this process. (`torch.cpu` queries the processor, regardless of the level.)"""
    return {
        "aten": torch.backends.cpu.get_cpu_capability(),
        "onednn_takes_bfloat16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "onednn_takes_float16": bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()),
    }


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The items in turn, with another one first in each round."""
    by %= len(items)
    return [*items[by:], *items[:by]]
