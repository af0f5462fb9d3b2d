"""Follows the U-Nets of a pipeline: one that is put into it while DeepCache is on gets it, the one taken out loses it.

Assigning an attribute runs no hook, so while DeepCache is on the pipeline's class is a subclass that notices. A copied
or unpickled pipeline is followed as well, by the engine that was copied with it.
"""

from __future__ import annotations

from typing import Any

from DeepCache.engine.extended_class import extend_class, restore_class

__all__ = ["follow_unets", "unfollow_unets"]

_FOLLOWED = "_deepcache_followed"


class _Following:
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        engine, names = self.__dict__.get(_FOLLOWED, (None, ()))
        if name in names:
            engine.follow()


def follow_unets(pipe: Any, engine: Any, names: tuple[str, ...]) -> None:
    """Has `engine.follow()` called whenever an attribute of these names is assigned. An object whose class cannot be
    changed (a `types.SimpleNamespace`) is left alone: there, call `enable()` again after assigning."""
    attributes = getattr(pipe, "__dict__", {})
    attributes[_FOLLOWED] = (engine, names)
    try:
        extend_class(pipe, _Following)
    except TypeError:
        del attributes[_FOLLOWED]


def unfollow_unets(pipe: Any, engine: Any) -> None:
    """Undoes `follow_unets`; without effect where another engine has taken over since."""
    if getattr(pipe, "__dict__", {}).get(_FOLLOWED, (None,))[0] is engine:
        restore_class(pipe, _Following)
        del pipe.__dict__[_FOLLOWED]
