"""Which tests pass with which versions of Python, torch, diffusers and transformers.

The core's tests (`tests/core.txt`) run in an environment for each row of `MATRIX`, and the fast tests of everything
with the lower bounds of `DeepCache[cli]`, all together, and with the newest versions. Where the core's tests run, the
package is installed last, from a wheel, and `changed` lists the packages whose versions that changed. Rows of one
Python and one torch share an environment, whose other packages are exchanged. Torch of the package index brings its
CUDA libraries, about 6 GB.

    python -m benchmarks.versions                       # all that the result file lacks
    python -m benchmarks.versions --environments newest # again, and the others stay as they are
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tomllib

from DeepCache.bench.provenance import describe_machine, provenance
from DeepCache.bench.result_file import write_result

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "versions.json"
# No torchao works with both the oldest torch and peft; the tests of quantisation are skipped there.
NOT_WITH_THE_OLDEST = "torchao"
# Other packages warn of other things in other versions.
PYTEST = [
    *("-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-W", "default", "-m", "not slow"),
    *("--numprocesses", "logical", "--dist", "loadscope"),
]


@dataclass(frozen=True)
class Row:
    """An environment.

    Args:
        name: what it is called in the result.
        python: version of Python, of which an interpreter `python3.x` is there.
        torch: version of torch; an empty string for the newest.
        pins: requirements beside it.
        whole: whether it runs the tests of everything, and not those of the core.
    """

    name: str
    python: str
    torch: str
    pins: tuple[str, ...] = ()
    whole: bool = False

    @property
    def folder(self) -> str:
        kind = "-whole" if self.whole else ""
        return f"python{self.python}-torch{self.torch or '-newest'}{kind}"


def pinned(diffusers: str, transformers: str, *others: str) -> tuple[str, ...]:
    """Requirements of one diffusers and one transformers, and what these two take."""
    return (f"diffusers=={diffusers}", f"transformers=={transformers}", *others)


_BEFORE_2024 = ("huggingface_hub<0.26", "numpy<2", "peft==0.10.0", "accelerate==0.28.0")
_OF_2025 = ("huggingface_hub<1", "numpy<2", "peft==0.14.0", "accelerate==1.2.0")

MATRIX = (
    Row("IDM-VTON", "3.10", "2.0.1", pinned("0.25.0", "4.36.2", *_BEFORE_2024)),
    Row("diffusers 0.27", "3.10", "2.0.1", pinned("0.27.2", "4.38.2", *_BEFORE_2024)),
    Row("MuseTalk", "3.10", "2.0.1", pinned("0.30.2", "4.39.2", *_BEFORE_2024)),
    Row("LatentSync", "3.10", "2.5.1", pinned("0.32.2", "4.48.0", *_OF_2025)),
    Row("diffusers 0.35", "3.10", "2.5.1", pinned("0.35.2", "4.57.6", "huggingface_hub<1", "numpy<2", "peft==0.17.1")),
    Row("diffusers 0.38", "3.12", "2.13.0", pinned("0.38.0", "5.6.2")),
    Row("Python 3.10", "3.10", "2.13.0", ("diffusers", "transformers")),
    Row("Python 3.13", "3.13", "", ("diffusers", "transformers")),
    Row("oldest", "3.11", "2.6.0", whole=True),
    Row("newest", "3.11", "", whole=True),
)


def main() -> int:
    options = _options()
    failed = False
    for row in MATRIX:
        wanted = row.name in options.environments if options.environments else row.name not in _known(options.output)
        if not wanted:
            continue
        print(f"{row.name}: Python {row.python}, torch {row.torch or 'newest'}, {', '.join(row.pins)}", flush=True)
        python, installed = _build(options.folder / row.folder, row)
        if options.install_only:
            origin = {f"install_{name}": value for name, value in _origin(row).items() if name in ("command", "date")}
            _add(options.output, row.name, _known(options.output)[row.name] | origin | installed)
            print(f"{row.name}: installed, changed {installed['changed'] or 'nothing'}", flush=True)
            continue
        environment = _origin(row) | installed | {"versions": _versions(python)}
        environment |= _run_tests(python, options.folder, row)
        _add(options.output, row.name, environment)
        shown = environment.get("not_run") or f"{environment['passed']} passed, {environment['failed']} failed"
        print(f"{row.name}: {shown}", flush=True)
        failed = failed or bool(environment.get("failures", True))
    return int(failed)


def oldest_versions() -> list[str]:
    """The lower bounds of `DeepCache[cli]` as exact versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [requirement.replace(">=", "==") for requirement in project["optional-dependencies"]["cli"]]


def _known(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))["environments"] if output.exists() else {}
    return found


def _origin(row: Row) -> dict[str, Any]:
    known = provenance(0)
    tests = " ".join(["python", *_tests(row)]).replace("not slow", '"not slow"')
    return {"command": known["command"], "date": known["date"], "machine": describe_machine(), "tests": tests}


def _tests(row: Row) -> list[str]:
    return PYTEST if row.whole else [*PYTEST, "@tests/core.txt"]


def _add(output: Path, name: str, environment: dict[str, Any]) -> None:
    """Writes the result of one environment and leaves those of the others as they are."""
    environments = _known(output) | {name: environment}
    ordered = {row.name: environments[row.name] for row in MATRIX if row.name in environments}
    write_result(output, {"environments": ordered})


def _build(folder: Path, row: Row) -> tuple[Path, dict[str, Any]]:
    """An environment with the package, what its tests take and, of what is pinned, exactly that version."""
    python = folder / "bin" / "python"
    if not python.exists():
        interpreter = shutil.which(f"python{row.python}") or sys.executable
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--upgrade", "pip"], check=True)
    if row.whole:
        exactly = oldest_versions() if row.name == "oldest" else []
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(exactly) + "\n", encoding="utf-8")
        command = [*pip, "install", "--constraint", constraints, "--editable", ".[cli]", "--group", "test"]
        subprocess.run(command, check=True, cwd=ROOT)
        if row.name == "oldest":
            subprocess.run([*pip, "uninstall", "--yes", NOT_WITH_THE_OLDEST], check=True)
        return python, {}
    torch = f"torch=={row.torch}" if row.torch else "torch"
    subprocess.run([*pip, "uninstall", "--yes", "DeepCache"], check=True)
    subprocess.run([*pip, "install", torch, *row.pins, "--group", "core"], check=True, cwd=ROOT)
    return python, {"changed": _install_wheel(pip, python)}


def _install_wheel(pip: list[Any], python: Path) -> list[str]:
    """Installs the package as a program would, from a wheel: the other packages that are not as before."""
    before = _versions(python)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, "."], check=True, cwd=ROOT)
        subprocess.run([*pip, "install", *Path(folder).glob("*.whl")], check=True)
    after = _versions(python)
    return [name for name in sorted(before | after) if name != "DeepCache" and before.get(name) != after.get(name)]


def _versions(python: Path) -> dict[str, str]:
    command = [python, "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    number = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    return {"python": number} | {package["name"]: package["version"] for package in listed}


def _run_tests(python: Path, folder: Path, row: Row) -> dict[str, Any]:
    report = folder.absolute() / "report.xml"
    started = time.monotonic()
    finished = subprocess.run([python, *_tests(row), f"--junit-xml={report}"], cwd=ROOT, check=False)
    # 0: all passed, 1: some failed; with anything else there is nothing to count.
    if finished.returncode not in (0, 1):
        return {"not_run": f"pytest ended with exit status {finished.returncode}"}
    return read_report(report) | {"seconds": round(time.monotonic() - started)}


def read_report(report: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and why those that failed did."""
    passed, skipped, failures = 0, 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        failure = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        if failure is not None:
            reason = failure.get("message", "").splitlines() or [""]
            failures.append({"test": f"{case.get('classname')}::{case.get('name')}", "reason": reason[0][:300]})
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "failed": len(failures), "skipped": skipped, "failures": failures}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--environments", nargs="+", choices=[row.name for row in MATRIX], help="run again")
    parser.add_argument("--install-only", action="store_true", help="what installing changes; no tests")
    parser.add_argument("--folder", type=Path, default=Path("build/versions"), help="where the environments are made")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
