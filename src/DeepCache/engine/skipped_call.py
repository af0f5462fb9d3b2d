"""Answers a call of the U-Net without running it.

No hook can keep a module from running its `forward`. `nn.Module.__call__` runs what `nn.Module.compile` has put into
`_compiled_call_impl` instead of the module where there is something, so a call that may be skipped is answered there.
It stands there only while the next step is a skipped one: `torch.compile` around the U-Net, which looks at that
attribute, then finds full and shallow steps as it compiled them.
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
        module: the module.
        answer: what to return for a call's arguments; None to run the module.

    Attributes:
        hidden: what `nn.Module.compile` had put there, while this stands before it.
    """

    def __init__(self, module: nn.Module, answer: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self._module = module
        self._answer = answer
        self.hidden: Any = None

    @property
    def attached(self) -> bool:
        """Whether it stands before the module."""
        return vars(self._module).get(_CALL) is self

    def attach(self) -> None:
        """Stands before the module; without effect where it does."""
        if not self.attached:
            self.hidden = vars(self._module).get(_CALL)
            vars(self._module)[_CALL] = self

    def detach(self) -> None:
        """Leaves the module as it was found; without effect where it does not stand before it."""
        if self.attached:
            del vars(self._module)[_CALL]
            if self.hidden is not None:
                vars(self._module)[_CALL] = self.hidden
                self.hidden = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._answer(args, kwargs)
        if output is not None:
            return output
        self.detach()
        return self._module(*args, **kwargs)
