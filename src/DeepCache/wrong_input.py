"""What the library raises for input that it cannot work with; people are told the message alone."""

from __future__ import annotations

__all__ = ["WRONG_INPUT_ERRORS"]

WRONG_INPUT_ERRORS = (ValueError, TypeError, OSError, MemoryError, ImportError)
