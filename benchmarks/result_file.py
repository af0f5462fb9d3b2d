"""Result files: JSON with the numbers and with all that is needed to read and repeat them."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("DeepCache", "torch", "diffusers", "transformers", "accelerate", "torchmetrics", "numpy")


def provenance(seed: int) -> dict[str, Any]:
    """Command, date, machine and versions of this run."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {module.name}" if module is not None else Path(sys.argv[0]).name
    return {
        "command": " ".join(["python", program, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seed": seed,
    }


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory and the system."""
    return {
        "cpu": _from_proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpu_features": sorted({"avx2", "avx512f", "amx_tile"} & set(_from_proc("/proc/cpuinfo", "flags").split())),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file so that a reader never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _from_proc(path: str, key: str) -> str:
    if not Path(path).is_file():
        return ""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _memory_gib() -> float | None:
    kib = _from_proc("/proc/meminfo", "MemTotal").removesuffix("kB").strip()
    return round(int(kib) / 2**20, 1) if kib else None
