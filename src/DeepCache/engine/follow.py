"""Follows the U-Nets of a pipeline: DeepCache is applied to one that is assigned, and removed from the one before.

Assigning an attribute runs no hook, so while DeepCache is attached the pipeline's class is a subclass that notices. A
copied or unpickled pipeline is followed as well, by the engine that was copied with it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_FOLLOWED = "_deepcache_followed"


class _Following:
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        engine, names = self.__dict__.get(_FOLLOWED, (None, ()))
        if name in names:
            engine.follow()


def follow_unets(pipe: Any, engine: Any, names: tuple[str, ...]) -> None:
    """Calls `engine.follow()` whenever an attribute of these names is assigned. An object whose class cannot be changed
    (a `types.SimpleNamespace`) is not followed: there, call `enable()` again after assigning."""
    attributes = getattr(pipe, "__dict__", {})
    attributes[_FOLLOWED] = (engine, names)
    try:
        extend_class(pipe, _Following)
    except TypeError:
        del attributes[_FOLLOWED]


def unfollow_unets(pipe: Any, engine: Any) -> None:
    """Reverts `follow_unets`; without effect if another engine has replaced this one since."""
    if getattr(pipe, "__dict__", {}).get(_FOLLOWED, (None,))[0] is engine:
        restore_class(pipe, _Following)
        del pipe.__dict__[_FOLLOWED]


def extend_class(instance: Any, extension: type) -> None:
    """Makes an object inherit from `extension` before its own class, unnoticed by saving, copying and `isinstance`.

    Raises a `TypeError` if the class of the object cannot be changed.
    """
    if not isinstance(instance, extension):
        object.__setattr__(instance, "__class__", _extended(instance.__class__, extension))


def restore_class(instance: Any, extension: type) -> None:
    """Reverts `extend_class`. Idempotent."""
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
    # The first two entries are the function that makes the object and its arguments; the state follows.
    return (_new, (kind, extension), *reduced[2:])


def _new(kind: Any, extension: type) -> Any:
    extended = _extended(kind, extension)
    return extended.__new__(extended)
