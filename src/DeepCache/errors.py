"""Errors that DeepCache raises."""

from __future__ import annotations

__all__ = ["REPORTED_ERRORS", "DeepCacheError", "GraphError", "MissingExtraError"]


class DeepCacheError(Exception):
    """Base class of DeepCache's own errors. Each also derives from the built-in error that fits."""


class GraphError(DeepCacheError, ValueError):
    """A graph cannot be exported, loaded or run."""


class MissingExtraError(DeepCacheError, ImportError):
    """A package that an extra of DeepCache installs is missing or too old."""


REPORTED_ERRORS = (ValueError, TypeError, OSError, MemoryError, ImportError)
"""Errors that the programs report as one line, without a traceback."""
