"""`python -m tests.fuzz --sequences 5000`: plays random sequences, and writes the findings."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result
from tests.fuzz.sequence import Sequence, shrunk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--sequences", type=int, default=5000, help="how many sequences to play")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first; each has the next one")
    parser.add_argument("--output", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, findings, programs, orders = time.monotonic(), [], Counter[str](), Counter[str]()
    calls = shallow = 0
    for number in range(options.sequences):
        sequence = Sequence.random(options.seed + number)
        try:
            outcome = sequence.play()
        except Exception as error:
            shortest = shrunk(sequence)
            findings.append({"error": f"{type(error).__name__}: {error}", "sequence": repr(shortest)})
            print(f"\n{findings[-1]['error']}\n  {shortest}", flush=True)
            continue
        calls, shallow = calls + outcome.calls, shallow + outcome.shallow
        programs.update(outcome.programs)
        orders[sequence.order] += 1
        if sys.stderr.isatty() or number % 500 == 499:
            print(f"{number + 1} of {options.sequences}, {len(findings)} findings", file=sys.stderr, flush=True)
    result: dict[str, Any] = provenance(options.seed) | {
        "sequences": options.sequences,
        "calls": calls,
        "shallow": shallow,
        "programs": dict(sorted(programs.items())),
        "orders": dict(sorted(orders.items())),
        "findings": findings,
        "seconds": round(time.monotonic() - begun),
    }
    print(f"{options.sequences} sequences, {calls} calls, {shallow} of them shallow, {len(findings)} findings")
    if options.output:
        write_result(options.output, result)
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
