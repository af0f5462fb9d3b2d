"""EasyCache and LazyCache, nodes of ComfyUI (comfy_extras/nodes_easycache.py; after EasyCache, arXiv 2507.02860)."""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.peer import Call

__all__ = ["EasyCache", "LazyCache"]

# Changes are measured on every eighth row and column, of small latents on eight rows and columns.
_STRIDE, _AT_LEAST = 8, 8


class _Accumulated:
    """Steps are skipped while the accumulated relative change expected of the output stays below a threshold.

    What is expected is the change of the input since the last full step, times the rate of output change to input
    change found there, relative to the size of the output.
    """

    def __init__(self, threshold: float, start: float, end: float) -> None:
        self._threshold, self._start, self._end = threshold, start, end
        self._sum = 0.0
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._size = 0.0
        self._rate: float | None = None
        self._change = 0.0

    def over(self, call: Call) -> bool:
        """Whether the part of the run in which steps may be skipped is over."""
        return call.timestep <= (1 - self._end) * call.last_timestep

    def may_skip(self, call: Call, given: Tensor) -> bool:
        """Whether this step is skipped, with this input."""
        self._change = 0.0
        if self._input is None or call.timestep > (1 - self._start) * call.last_timestep:
            return False
        self._change = _distance(_thinned(given), self._input)
        if self._rate is None:
            return False
        self._sum += self._rate * self._change / self._size
        if self._sum < self._threshold:
            return True
        self._sum = 0.0
        return False

    def note_full(self, given: Tensor, output: Tensor, watched: Tensor) -> None:
        """Input and output of a full step; `watched` is the part of the output whose change counts."""
        thin = _thinned(watched)
        if self._output is not None and self._change:
            self._rate = _distance(thin, self._output) / self._change
        self._input, self._output = _thinned(given), thin
        self._size = float(output.abs().mean())


class EasyCache:
    """Skips the U-Net and adds to the input what the last full step added: prediction minus input, each half its own.

    Published defaults: threshold 0.2, from 15 % to 95 % of the noise schedule. Changes are measured on the first half
    of a guided batch (without the prompt) and on every eighth row and column, as the node does.

    What differs: latents of fewer than 64 rows are thinned less, to 8 rows and columns.
    """

    def __init__(self, threshold: float = 0.2, start: float = 0.15, end: float = 0.95) -> None:
        self._change = _Accumulated(threshold, start, end)
        self._added: Tensor | None = None

    def predict(self, call: Call) -> Tensor:
        if self._change.over(call):
            return call.full()
        half = len(call.x) // call.halves
        given = call.x[:half]
        if self._change.may_skip(call, given) and self._added is not None:
            return call.skip(call.x + self._added)
        output = call.full()
        self._added = output - call.x
        self._change.note_full(given, output, output[:half])
        return output


class LazyCache:
    """As EasyCache, on the guided clean image and the latents instead of each half's prediction and the U-Net's input.

    Published defaults: threshold 0.2, from 15 % to 95 % of the noise schedule. The node works on latents of the form
    `x0 + s * noise`, for which clean image minus latents is `-s * prediction`; re-using it means to scale the last
    prediction by the ratio of the two `s`.

    What differs: small latents are thinned less, as for EasyCache. Both halves get the scaled prediction of their own,
    which is the same once guided.
    """

    def __init__(self, threshold: float = 0.2, start: float = 0.15, end: float = 0.95) -> None:
        self._change = _Accumulated(threshold, start, end)
        self._added: Tensor | None = None

    def predict(self, call: Call) -> Tensor:
        if self._change.over(call):
            return call.full()
        noise = call.sigma / call.alpha
        given = call.x[: len(call.x) // call.halves] / call.alpha
        if self._change.may_skip(call, given) and self._added is not None:
            return call.skip(self._added / noise)
        output = call.full()
        self._added = output * noise
        clean = call.clean(output)
        self._change.note_full(given, clean, clean)
        return output


def _thinned(tensor: Tensor) -> Tensor:
    stride = min(_STRIDE, max(1, min(tensor.shape[-2:]) // _AT_LEAST))
    return tensor[..., ::stride, ::stride].clone()


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().mean())
