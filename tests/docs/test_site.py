"""The site of the pages in docs/, built as `make docs` builds it."""

from __future__ import annotations

import importlib
import io
import pkgutil
import re
from html.parser import HTMLParser
from pathlib import Path
from warnings import catch_warnings, simplefilter

import pytest
from typer.main import get_command

import DeepCache.bench
from DeepCache.cli import app

DOCS = Path(__file__).parents[2] / "docs"

DOCUMENTED = (
    "DeepCache",
    "DeepCache.batch",
    "DeepCache.bench.ablation",
    "DeepCache.bench.benchmark",
    "DeepCache.bench.result_file",
    "DeepCache.bench.variants",
    "DeepCache.config",
    "DeepCache.engine.cost",
    "DeepCache.errors",
    "DeepCache.export",
    "DeepCache.flops",
    "DeepCache.generation",
    "DeepCache.judge",
    "DeepCache.metrics",
    "DeepCache.models",
    "DeepCache.plan",
    "DeepCache.progress",
    "DeepCache.prompts",
    "DeepCache.report",
    "DeepCache.schedule",
    "DeepCache.tune",
)
# Packages whose modules are not gone through: what is public in them is in their own `__all__`.
LEFT_OUT = {
    "DeepCache.app": "a program, which docs/app.md is about",
    "DeepCache.cli": "a program, which docs/commands.md is about",
    "DeepCache.comfyui": "nodes, which docs/comfyui.md is about",
    "DeepCache.difference_image": "internal: compares two images",
    "DeepCache.files": "internal: reads and writes files",
    "DeepCache.text": "internal: formats values for messages",
    "DeepCache.pareto": "a function that the commands use",
    "DeepCache.extension": "where the reference package has its helper",
    "DeepCache.extras": "what is said where packages are missing",
    "DeepCache.runtime": "what the programs check of a runtime before anything is loaded",
    "DeepCache.skip_rule": "how the rule of a subclass of the helper becomes a schedule",
    "DeepCache.sd": "raises ImportError",
    "DeepCache.sdxl": "raises ImportError",
    "DeepCache.svd": "raises ImportError",
    "DeepCache.engine": "internal; its public parts are listed by hand, docs/design.md describes the rest",
} | dict.fromkeys(
    (
        "DeepCache.bench.ablation_cells",
        "DeepCache.bench.ablation_group",
        "DeepCache.bench.checks",
        "DeepCache.bench.clock",
        "DeepCache.bench.benchmark_case",
        "DeepCache.bench.profiled_steps",
        "DeepCache.bench.profiles",
        "DeepCache.bench.provenance",
        "DeepCache.bench.reference",
        "DeepCache.bench.summary",
        "DeepCache.bench.workload",
    ),
    "how the two measurements are made; the settings say all that a program can choose",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, and what Sphinx warned of."""
    sphinx = pytest.importorskip("sphinx.application")
    folder = tmp_path_factory.mktemp("site")
    warnings = io.StringIO()
    # Sphinx's own extensions use what it deprecates; what it says of the pages is not a warning of Python.
    with catch_warnings():
        simplefilter("ignore")
        site = sphinx.Sphinx(
            DOCS, DOCS, folder / "html", folder / "trees", "html", {"nitpicky": True}, status=None, warning=warnings
        )
        site.build()
    return site, warnings.getvalue()


class _Page(HTMLParser):
    """The links of a page, what it loads, and the places in it that a link can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attributes if value}
        self.places.add(values.get("id", ""))
        if tag == "a":
            self.links.add(values.get("href", "#"))
        else:
            self.loaded |= {values[name] for name in ("href", "src", "srcset", "data") if name in values}


@pytest.fixture(scope="module")
def pages(site):
    folder = Path(site[0].outdir)
    return {path: _Page(path) for path in sorted(folder.rglob("*.html")) if "_downloads" not in path.parts}


def test_nothing_is_warned_of(site):
    assert site[1] == ""


def test_no_page_asks_another_site_for_anything(site, pages):
    assert len(pages) > 20
    for path, page in pages.items():
        assert not [url for url in page.loaded if re.match("(?!data:)[a-z]+:|//", url)], path
    for style in Path(site[0].outdir).rglob("*.css"):
        urls = re.findall(r"url\(['\"]?([^)]*)|@import\s*(\S*)", style.read_text(encoding="utf-8"))
        assert not [url for pair in urls for url in pair if url.startswith(("http", "//"))], style


def test_every_link_leads_somewhere(pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            file, _, place = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (path.parent / file).resolve() if file else path
            if not target.is_file() or (place and target in pages and place not in pages[target].places):
                dead.append(f"{path.name}: {link}")
    assert not dead


def test_a_link_out_of_the_folder_leads_to_a_page_or_a_copy(site):
    # conf.py tells Python where it is.
    on_the_site = importlib.import_module("outside_files").links_on_the_site
    for link, instead in {
        "[text](../README.md#results)": "[text](overview.md#results)",
        "[text](../CHANGELOG.md)": "[text](changelog.md)",
        "[text](../training/)": "[text](training.md)",
        "[`code`](../benchmarks/frontier/)": "[`code`](result-files.md#benchmarksfrontier)",
        "[`code`](../src/DeepCache/)": "`code`",
        "[text](../benchmarks/fidelity.json.gz)": "[text](../benchmarks/fidelity.json.gz)",
        "[text](schedules.md#tuning-a-plan)": "[text](schedules.md#tuning-a-plan)",
        "![text](images/frontier.png)": "![text](images/frontier.png)",
        "[text](https://example.com/)": "[text](https://example.com/)",
        "`[text](../README.md)`": "`[text](../README.md)`",
        "```text\n[text](../README.md)\n```": "```text\n[text](../README.md)\n```",
    }.items():
        assert on_the_site(f"{link}\n\n{link}\n", DOCS, DOCS) == f"{instead}\n\n{instead}\n"
    assert on_the_site("[text](docs/x.md), ![](docs/a.png)", DOCS.parent, DOCS) == "[text](x.md), ![](a.png)"
    folder = Path(site[0].outdir)
    (copy,) = folder.glob("_downloads/*/fidelity.json.gz")
    assert copy.read_bytes() == (DOCS.parent / "benchmarks" / "fidelity.json.gz").read_bytes()


def test_every_command_with_every_option_is_on_the_page_of_the_commands(site):
    page = (Path(site[0].outdir) / "commands.html").read_text(encoding="utf-8")
    sections = {part.split('"')[0]: part for part in page.split('<section id="deepcache-')[1:]}
    commands = get_command(app).commands
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        shown = re.sub(r"<[^>]*>", "", sections[name])
        words = set(re.findall(r"--[a-z0-9-]+|\b[A-Z][A-Z.a-z]+", shown))
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                assert parameter.get_help_record(command.context_class(command))[0].split(" ")[0] in words
            else:
                assert {option for option in parameter.opts if option.startswith("--")} <= words


def test_every_public_name_is_in_the_reference(site):
    entries = site[0].env.domains.python_domain.objects
    missing = {
        f"{module}.{name}"
        for module in DOCUMENTED
        for name in importlib.import_module(module).__all__
        if f"{module}.{name}" not in entries
        # What `DeepCache` gives is described where it is defined.
        and f"{getattr(getattr(importlib.import_module(module), name), '__module__', '')}.{name}" not in entries
    }
    assert not missing


def test_every_other_public_name_is_left_out_for_a_reason():
    documented = {name for module in DOCUMENTED for name in importlib.import_module(module).__all__}
    found = {module.name for module in pkgutil.iter_modules(DeepCache.__path__, "DeepCache.")}
    found |= {module.name for module in pkgutil.iter_modules(DeepCache.bench.__path__, "DeepCache.bench.")}
    others = {
        name: names
        for name in found - LEFT_OUT.keys()
        if (names := set(getattr(importlib.import_module(name), "__all__", ())) - documented)
    }
    assert others == {}
    assert found >= LEFT_OUT.keys()
