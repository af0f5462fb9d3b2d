"""Two threads that call one U-Net at once, each with its own list, sample and prompt."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from tests.fuzz.world import Finding, Request, World, _trace

__all__ = ["draw", "run"]

_REFUSED = "two threads"
_PATIENCE = 30


def draw(draft: Any) -> dict[str, Any]:
    """Draws two loops."""
    from tests.fuzz.actions import _draw_spec

    specs = [
        replace(
            _draw_spec(draft),
            where="own",
            how=draft.rng.choice(("view", "int")),
            prompt=prompt,
            roles=("cond",),
            conds="persistent",
            mode="no_grad",
            inplace=False,
            dirty=False,
            counts=False,
            thread=10 + prompt,
        )
        for prompt in (1, 2)
    ]
    return {"specs": specs, "steps": draft.rng.randint(3, 6), "goes_on": draft.chance(0.7)}


def run(world: World, specs: list[Any], steps: int, goes_on: bool) -> None:
    """Runs both at once. A call may be refused with an error that names the two threads; a thread then makes the step
    again or ends. What the others return is judged when both are done."""
    from tests.fuzz.loops import Loop

    loops = [Loop(world, -2, spec) for spec in specs]
    made: list[list[tuple[Request, Any, Any, Tensor]]] = [[], []]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        loop = loops[number]
        for _ in range(steps):
            if loop.done:
                return
            request = loop.request("cond", "no_grad")
            args, kwargs, _ = world.prepare(request)
            try:
                output = world.invoke(loop.unit.called, request, args, kwargs)
            except RuntimeError as error:
                if _REFUSED not in str(error):
                    failures.append(error)
                    return
                world.counts["refused a thread"] += 1
                if goes_on:
                    continue
                return
            except BaseException as error:
                failures.append(error)
                return
            made[number].append((request, args, kwargs, output))
            loop.advance([output])

    _together([lambda: work(0), lambda: work(1)])
    if failures:
        raise Finding(f"{type(failures[0]).__name__} raised with two threads", _trace(failures[0]))
    loops[0].unit.sight.clear()
    for loop, calls in zip(loops, made, strict=True):
        for request, args, kwargs, output in calls:
            world.judge(loop.unit, request, args, kwargs, output)
    world.check()


def _together(works: list[Callable[[], None]]) -> None:
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], None]) -> None:
        barrier.wait(_PATIENCE)
        work()

    threads = [threading.Thread(target=begin, args=(work,), daemon=True) for work in works]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    if any(thread.is_alive() for thread in threads):
        raise Finding("two threads hang", f"after {_PATIENCE} s")
