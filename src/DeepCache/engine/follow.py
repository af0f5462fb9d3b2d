"""Follows the U-Nets of a pipeline: one that is put into it while DeepCache is on gets it, the one taken out loses it.

Assigning an attribute runs no hook, so while DeepCache is on the pipeline's class is a subclass that notices. It has
the name and module of the class it extends; saving, `from_pipe` and `isinstance` see no difference. A copied or
unpickled pipeline is followed as well, by the engine that was copied with it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["follow_unets", "unfollow_unets"]

_FOLLOWED = "_deepcache_followed"


class _Following:
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        engine, names = self.__dict__.get(_FOLLOWED, (None, ()))
        if name in names:
            engine.follow()

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        # After the function that makes the object and its arguments comes what is put into it.
        return (_new, (type(self).__mro__[2],), *reduced[2:])


def _new(cls: Any) -> Any:
    following = _following(cls)
    return following.__new__(following)


def _following(cls: Any) -> Any:
    attributes = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_Following, cls), attributes)


def follow_unets(pipe: Any, engine: Any, names: tuple[str, ...]) -> None:
    """Has `engine.follow()` called whenever an attribute of these names is assigned. An object whose class cannot be
    changed (a `types.SimpleNamespace`) is left alone: there, call `enable()` again after assigning."""
    attributes = getattr(pipe, "__dict__", {})
    attributes[_FOLLOWED] = (engine, names)
    if not isinstance(pipe, _Following):
        try:
            pipe.__class__ = _following(type(pipe))
        except TypeError:
            del attributes[_FOLLOWED]


def unfollow_unets(pipe: Any, engine: Any) -> None:
    """Undoes `follow_unets`; without effect where another engine has taken over since."""
    if getattr(pipe, "__dict__", {}).get(_FOLLOWED, (None,))[0] is engine:
        if isinstance(pipe, _Following):
            pipe.__class__ = type(pipe).__mro__[2]
        del pipe.__dict__[_FOLLOWED]
