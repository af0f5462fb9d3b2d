"""Wraps every call of a denoiser: one thread at a time, answers skipped steps, cleans up after an interrupted call.

No hook can keep a module from running its `forward`, and no hook sees Ctrl-C. `nn.Module.__call__` runs what
`nn.Module.compile` has put into `_compiled_call_impl` instead of the module where there is something, so the guard is
put there, around what is there already. Where `torch.compile` has wrapped the denoiser, it goes around that wrapper:
with `fullgraph=True` the wrapper raises if nothing that it compiled has run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from DeepCache.engine.extended_class import extend_class, restore_class
from DeepCache.engine.torch_versions import CALLS_WHAT_IS_COMPILED, not_compiled

__all__ = ["CallGuard"]

_CALL = "_compiled_call_impl"


class _Guarded:
    """A module of torch 2.0, whose `__call__` runs nothing in place of the module."""

    _call_impl: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        guard = vars(self).get(_CALL)
        return (self._call_impl if guard is None else guard)(*args, **kwargs)


class CallGuard:
    """What runs the calls of one module.

    Args:
        answer: what to return for a call's arguments without running the module; None to run it.
        interrupted: called where a call ends with an exception, whatever it is.

    Attributes:
        hidden: what `nn.Module.compile` had put there.
        answers: whether any call may be answered.
        turn: held for the length of a call. A shallow step changes the denoiser for every thread, so that others wait.
    """

    def __init__(
        self, answer: Callable[[tuple[Any, ...], dict[str, Any]], Any], interrupted: Callable[[], None]
    ) -> None:
        self._answer = answer
        self._interrupted = interrupted
        self._module: nn.Module | None = None
        self.hidden: Any = None
        self.answers = False
        self.turn = threading.RLock()

    def attach(self, module: nn.Module) -> None:
        """Wraps the calls of a module, and of no other. Idempotent."""
        if vars(module).get(_CALL) is not self:
            self.detach()
            self._module, self.hidden = module, vars(module).get(_CALL)
            vars(module)[_CALL] = self
            if not CALLS_WHAT_IS_COMPILED:
                extend_class(module, _Guarded)

    def detach(self) -> None:
        """Leaves the module as it was found; without effect where the guard is not on one."""
        module = self._module
        # First taken away and then forgotten: Ctrl-C may come in between.
        if module is not None and vars(module).get(_CALL) is self:
            restore_class(module, _Guarded)
            if self.hidden is None:
                del vars(module)[_CALL]
            else:
                vars(module)[_CALL] = self.hidden
        self._module = self.hidden = None

    def __bool__(self) -> bool:
        # peft asks whether a module is compiled by what stands here.
        return self.hidden is not None

    # Not compiled itself, while the module that it calls may be.
    @partial(not_compiled, recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module
        assert module is not None
        with self.turn:
            try:
                if self.answers:
                    output = self._answer(args, kwargs)
                    if output is not None:
                        return output
                return (self.hidden or module._call_impl)(*args, **kwargs)
            except BaseException:
                self._interrupted()
                raise

    def __getstate__(self) -> dict[str, Any]:
        # A lock is neither copied nor pickled.
        return {name: value for name, value in self.__dict__.items() if name != "turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"turn": threading.RLock()}
