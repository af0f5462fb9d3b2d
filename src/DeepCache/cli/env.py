"""`deepcache env`: the environment, for bug reports."""

from __future__ import annotations

import json

from rich.console import Console

from DeepCache.cli.options import Json

__all__ = ["env_command"]


def env_command(
    as_json: Json = False,
) -> None:
    """Show versions, devices and supported dtypes for a bug report.

    Example: deepcache env
    """
    from DeepCache.bench.environment import describe_environment

    found = describe_environment()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for name, value in found.items():
        if isinstance(value, dict):
            console.print(f"{name}:")
            for key, each in value.items():
                console.print(f"  {key}: {each}")
        else:
            console.print(f"{name}: {value}")
