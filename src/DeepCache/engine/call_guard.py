"""Wraps every call of a denoiser: one thread at a time, answers skipped steps, cleans up after an interrupted call.

A hook cannot keep a module from running its `forward`, and no hook sees Ctrl-C. `nn.Module.__call__` runs what
`nn.Module.compile` has put into `_compiled_call_impl` instead of the module, so the guard is put there, around what is
there already. Where `torch.compile` has wrapped the denoiser, the guard goes around that wrapper: with `fullgraph=True`
the wrapper raises if nothing that it compiled has run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from DeepCache.engine.follow import extend_class, restore_class
from DeepCache.engine.layouts.layout import Args, Kwargs
from DeepCache.engine.torch_versions import CALLS_WHAT_IS_COMPILED, not_compiled

_CALL = "_compiled_call_impl"


class _Guarded:
    """A module of torch 2.0, whose `__call__` ignores `_compiled_call_impl`."""

    _call_impl: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        guard = vars(self).get(_CALL)
        return (self._call_impl if guard is None else guard)(*args, **kwargs)


class CallGuard:
    """Runs the calls of one module.

    Args:
        answer: returns the output for a call's arguments without running the module; None to run it.
        interrupted: called after any exception.

    Attributes:
        hidden: what `nn.Module.compile` had put there.
        answers: whether any call may be answered.
        turn: held for the length of a call, since a shallow step changes the denoiser for every thread.
    """

    def __init__(self, answer: Callable[[Args, Kwargs], Any], interrupted: Callable[[], None]) -> None:
        self._answer, self._interrupted = answer, interrupted
        self._module: nn.Module | None = None
        self.hidden: Any = None
        self.answers = False
        self.turn = threading.RLock()

    def attach(self, module: nn.Module) -> None:
        """Wraps the calls of this module only. Idempotent."""
        if vars(module).get(_CALL) is not self:
            self.detach()
            self._module, self.hidden = module, vars(module).get(_CALL)
            vars(module)[_CALL] = self
            if not CALLS_WHAT_IS_COMPILED:
                extend_class(module, _Guarded)

    def detach(self) -> None:
        """Restores the module. Idempotent."""
        module = self._module
        # First removed and then forgotten: Ctrl-C may come in between.
        if module is not None and vars(module).get(_CALL) is self:
            restore_class(module, _Guarded)
            if self.hidden is None:
                del vars(module)[_CALL]
            else:
                vars(module)[_CALL] = self.hidden
        self._module = self.hidden = None

    def __bool__(self) -> bool:
        # peft reads this attribute of a module to see whether it is compiled.
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
        # A lock can be neither copied nor pickled.
        return {name: value for name, value in self.__dict__.items() if name != "turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"turn": threading.RLock()}
