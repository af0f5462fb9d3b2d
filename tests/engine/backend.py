"""Replaces the backend of `torch.compile`."""

import torch

_compile = torch.compile


def use_backend(monkeypatch, backend, fullgraph=True):
    """Makes `torch.compile` use a backend, and returns it. `fullgraph=True` raises at a graph break."""

    def compile_with(function, mode=None, **options):
        return _compile(function, backend=backend, fullgraph=fullgraph, **options)

    monkeypatch.setattr(torch, "compile", compile_with)
    return backend
