"""The command `deepcache`."""

from __future__ import annotations

# Nothing else is imported here: Ctrl-C in the middle of an import ends as well as it does later.
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from DeepCache.cli.commands import app as app

__all__ = ["app", "main"]


def main() -> None:
    """The console command."""
    try:
        from DeepCache.cli.interruption import on_interrupt

        with on_interrupt():
            from DeepCache.extras import why_missing

            if missing := why_missing("cli"):
                print(f"deepcache: {missing}", file=sys.stderr)
                sys.exit(2)
            from DeepCache.cli.commands import app

            app(prog_name="deepcache")
    except KeyboardInterrupt:
        sys.exit(130)


def __getattr__(name: str) -> Any:
    if name == "app":
        from DeepCache.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
