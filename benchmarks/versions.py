"""Which tests pass with the oldest versions that pyproject.toml admits, and which with the newest there are.

Makes one environment of each in a folder of its own (torch of the package index brings its CUDA libraries: about 6 GB
each) and runs the fast tests in it. With `--environments oldest` the result of the other one stays as it is.

    python -m benchmarks.versions --output benchmarks/versions.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tomllib

from DeepCache.bench.provenance import describe_machine, provenance
from DeepCache.bench.result_file import write_result

ROOT = Path(__file__).parents[1]
# No torchao works with both the oldest torch and peft; the tests of quantisation are skipped there.
NOT_WITH_THE_OLDEST = "torchao"
# Other packages warn of other things in other versions.
TESTS = ["-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-W", "default", "-m", "not slow"]


def main() -> None:
    options = _options()
    for name in options.environments:
        folder = options.folder / name
        python = _build(folder, oldest_versions() if name == "oldest" else [])
        if name == "oldest":
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", NOT_WITH_THE_OLDEST], check=True)
        environment = _provenance() | {"versions": _versions(python)}
        if not options.build_only:
            environment |= _run_tests(python, folder)
            _add(options.output, name, environment)
        print(name, json.dumps(environment, indent=2))


def _provenance() -> dict[str, Any]:
    known = provenance(0)
    tests = " ".join(["python", *TESTS]).replace("not slow", '"not slow"')
    return {"command": known["command"], "date": known["date"], "machine": describe_machine(), "tests": tests}


def _add(output: Path, name: str, environment: dict[str, Any]) -> None:
    """Writes the result of one environment and leaves that of the other as it is."""
    result = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {"environments": {}}
    result["environments"][name] = environment
    write_result(output, result)


def oldest_versions() -> list[str]:
    """The lower bounds of pyproject.toml as exact versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [requirement.replace(">=", "==") for requirement in project["dependencies"]]


def _build(folder: Path, exactly: list[str]) -> Path:
    """A fresh environment with the package, its tests' requirements and, of what is named, exactly that version."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(exactly) + "\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--upgrade", "pip"], check=True)
    subprocess.run([*install, "--constraint", constraints, "--editable", ".", "--group", "test"], check=True, cwd=ROOT)
    return python


def _versions(python: Path) -> dict[str, str]:
    command = [python, "-m", "pip", "list", "--format", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    number = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    return {"python": number} | {package["name"]: package["version"] for package in listed}


def _run_tests(python: Path, folder: Path) -> dict[str, Any]:
    report = folder / "report.xml"
    started = time.monotonic()
    finished = subprocess.run([python, *TESTS, f"--junit-xml={report}"], cwd=ROOT, check=False)
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
    parser.add_argument("--output", type=Path, default=Path("benchmarks/versions.json"))
    parser.add_argument("--environments", nargs="+", choices=["oldest", "newest"], default=["oldest", "newest"])
    parser.add_argument("--folder", type=Path, default=Path("build/versions"), help="where the environments are made")
    parser.add_argument("--build-only", action="store_true", help="make the environments and run no test")
    return parser.parse_args()


if __name__ == "__main__":
    main()
