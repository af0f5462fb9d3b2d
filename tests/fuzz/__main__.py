"""Plays random sequences of what programs do with a U-Net, and looks at every call.

    python -m tests.fuzz --sequences 5000 --seed 0 --output benchmarks/fuzz.json

A finding is printed with the shortest sequence that leads to it. `--replay` plays one and prints its calls:

    python -m tests.fuzz --replay 17:0,2,3
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from DeepCache.bench.provenance import provenance
from tests.fuzz.library import DEEPCACHE
from tests.fuzz.sequence import Played, Sequence, draw_sequence, play, shrink
from tests.fuzz.toy import FAULTS, Toy
from tests.fuzz.unknowable import UNKNOWABLE

# Of findings of one kind so many are made short.
_SHRUNK = 6


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    library = DEEPCACHE if options.cache == "DeepCache" else Toy("" if options.cache == "toy" else options.cache)
    if options.replay:
        return _replay(options.replay, library)
    counts: Counter[str] = Counter()
    found: dict[str, list[dict[str, Any]]] = {}
    started = time.monotonic()
    for number, (seed, played) in enumerate(_played(options, library), start=1):
        counts += played.counts
        if played.finding is not None:
            _add(found, draw_sequence(seed), played, library)
        _progress(number, options.sequences, counts, found, started)
    seconds = time.monotonic() - started
    print(file=sys.stderr)
    for kind, findings in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"\n{len(findings)} x {kind}")
        shortest = min(findings, key=lambda each: len(each.get("actions", ["none"] * 99)))
        print("\n".join([f"  --replay {shortest['replay']}   {shortest['text']}", *shortest.get("actions", [])]))
    result = _result(options, counts, found, seconds)
    if options.output:
        options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"\n{options.sequences} sequences, {counts['calls']} U-Net calls, {result['shallow_share']:.0%} of them shallow, "
        f"{sum(map(len, found.values()))} findings, {options.sequences / seconds:.0f} sequences a second"
    )
    return 1 if found else 0


def _played(options: argparse.Namespace, library: Any) -> Iterator[tuple[int, Played]]:
    seeds = range(options.seed, options.seed + options.sequences)
    if options.workers == 1:
        for seed in seeds:
            yield seed, play(draw_sequence(seed), library)
        return
    with multiprocessing.get_context("spawn").Pool(options.workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(partial(_play, library=library), seeds, chunksize=25)


def _play(seed: int, library: Any) -> tuple[int, Played]:
    return seed, play(draw_sequence(seed), library)


def _add(found: dict[str, list[dict[str, Any]]], sequence: Sequence, played: Played, library: Any) -> None:
    finding = played.finding
    assert finding is not None
    findings = found.setdefault(finding.kind, [])
    entry: dict[str, Any] = {"replay": sequence.name, "text": finding.text}
    if len(findings) < _SHRUNK:
        short = shrink(sequence, finding, library)
        again = play(short, library).finding
        entry = {"replay": short.name, "text": (again or finding).text, "actions": short.lines()}
    findings.append(entry)


def _progress(
    number: int, total: int, counts: Counter[str], found: dict[str, list[dict[str, Any]]], started: float
) -> None:
    if number % 20 and number != total:
        return
    speed = number / (time.monotonic() - started)
    line = f"{number}/{total} sequences, {counts['calls']} calls, {sum(map(len, found.values()))} findings, {speed:.0f}/s"
    print(f"\r{line}   ", end="", file=sys.stderr, flush=True)


def _result(
    options: argparse.Namespace, counts: Counter[str], found: dict[str, list[dict[str, Any]]], seconds: float
) -> dict[str, Any]:
    calls = counts["calls"] or 1
    return provenance(options.seed) | {
        "sequences": options.sequences,
        "cache": options.cache,
        "seconds": round(seconds, 1),
        "calls": counts["calls"],
        "shallow_calls": counts["shallow"],
        "shallow_share": round(counts["shallow"] / calls, 4),
        "gradient_calls": counts["gradient calls"],
        "interrupted_calls": counts["interrupted"],
        "refused": {"wrapped U-Net": counts["refused"], "second thread": counts["refused a thread"]},
        "run_ended_first": {
            name: {"times": counts[f"unknowable: {name}"], "reason": reason} for name, (_, reason) in UNKNOWABLE.items()
        },
        "actions": {
            name.removeprefix("action: "): count for name, count in sorted(counts.items()) if name.startswith("action: ")
        },
        "findings": sum(map(len, found.values())),
        "found": found,
    }


def _replay(name: str, library: Any) -> int:
    seed, _, numbers = name.partition(":")
    sequence = draw_sequence(int(seed))
    if numbers:
        sequence = sequence.only(map(int, numbers.split(",")))
    played = play(sequence, library)
    print("\n".join([f"  {sequence.setup}", *played.log]))
    print(played.finding or "nothing found")
    return int(played.finding is not None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="of the first sequence; each further one has the next")
    parser.add_argument("--output", type=Path, help="a JSON file for the result")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--replay", help="a sequence to play and print, as a finding names it")
    parser.add_argument(
        "--cache", default="DeepCache", choices=["DeepCache", "toy", *FAULTS], help="what is tested; see toy.py"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
