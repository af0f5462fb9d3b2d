"""Gives an object a subclass of its own class, which saving, copying and `isinstance` do not notice."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["extend_class", "restore_class"]


def extend_class(instance: Any, extension: type) -> None:
    """Has an object inherit from an extension before its own class; without effect where it does already.

    Args:
        instance: the object.
        extension: a class with the methods to put before those of the object's class.

    Raises:
        TypeError: the class of the object cannot be changed (a `types.SimpleNamespace`).
    """
    if not isinstance(instance, extension):
        object.__setattr__(instance, "__class__", _extended(instance.__class__, extension))


def restore_class(instance: Any, extension: type) -> None:
    """Undoes `extend_class`; without effect where it was not called."""
    if isinstance(instance, extension):
        object.__setattr__(instance, "__class__", type(instance).__mro__[2])


@cache
def _extended(kind: Any, extension: Any) -> Any:
    attributes = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": _reduced,
    }
    return type(kind.__name__, (extension, kind), attributes)


def _reduced(instance: Any, protocol: Any) -> Any:
    extended = type(instance)
    extension, kind = extended.__mro__[1:3]
    reduced: Any = super(extended, instance).__reduce_ex__(protocol)
    # After the function that makes the object and its arguments comes what is put into it.
    return (_new, (kind, extension), *reduced[2:])


def _new(kind: Any, extension: type) -> Any:
    extended = _extended(kind, extension)
    return extended.__new__(extended)
