"""Answers a call of the U-Net without running it.

No hook can keep a module from running its `forward`. `nn.Module.__call__` runs what `nn.Module.compile` has put into
`_compiled_call_impl` instead of the module where there is something, so a call that may be skipped is answered there.
It stands there only while the next step is a skipped one: `torch.compile` around the U-Net, which looks at that
attribute, then finds full and shallow steps as it compiled them. Where `torch.compile` has wrapped the U-Net, the
wrapper is what is called and answered for: with `fullgraph=True` it raises where nothing that it compiled has run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["SkippedCall"]

_CALL = "_compiled_call_impl"


class SkippedCall:
    """What answers the next call of a module, if it can.

    Args:
        answer: what to return for a call's arguments; None to run the module.

    Attributes:
        hidden: what `nn.Module.compile` had put there, while this stands before it.
    """

    def __init__(self, answer: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self._answer = answer
        self._module: nn.Module | None = None
        self.hidden: Any = None

    def attach(self, module: nn.Module) -> None:
        """Stands before a module, and before no other; without effect where it does."""
        if vars(module).get(_CALL) is not self:
            self.detach()
            self._module, self.hidden = module, vars(module).get(_CALL)
            vars(module)[_CALL] = self

    def detach(self) -> None:
        """Leaves the module as it was found; without effect where it stands before none."""
        module, hidden, self._module, self.hidden = self._module, self.hidden, None, None
        if module is not None and vars(module).get(_CALL) is self:
            del vars(module)[_CALL]
            if hidden is not None:
                vars(module)[_CALL] = hidden

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._answer(args, kwargs)
        if output is not None:
            return output
        module = self._module
        assert module is not None
        self.detach()
        return module(*args, **kwargs)
