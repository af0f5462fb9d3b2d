"""Compiles with another backend than inductor, whoever asks for what."""

import torch

_compile = torch.compile


def use_backend(monkeypatch, backend, fullgraph=True):
    """Has `torch.compile` use a backend from here on, and returns that. `fullgraph=True` refuses a graph break."""

    def compile_with(function, mode=None, **options):
        return _compile(function, backend=backend, fullgraph=fullgraph, **options)

    monkeypatch.setattr(torch, "compile", compile_with)
    return backend
