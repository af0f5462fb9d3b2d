"""Builds the site of these pages: `make docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "DeepCache"
version = release = installed_version("DeepCache")
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "back_links",
    "command_page",
    "docstring_names",
    "outside_files",
]

# Headings are linked to as GitHub links to them.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

# Names of other packages are not linked to: that would ask their sites for a list while building.
nitpick_ignore_regex = [(r"py:.*", r"(collections|diffusers|os|pathlib|PIL|torch|types|typing)\..*")]
# Imported for the type checker alone, so that autodoc does not know their modules; and a type variable.
nitpick_ignore = [("py:class", name) for name in ("DiffusionPipeline", "Image", "LoadedPipeline", "Path", "SlotName")]
nitpick_ignore += [("py:class", f"DeepCache.{name}") for name in ("engine.layouts._L", "prompts.sampling._Item")]

html_theme = "furo"
html_title = f"DeepCache {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "default"
pygments_dark_style = "github-dark"

# What a reader copies is what can be typed or run.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def write_the_report(site: Sphinx, error: Exception | None) -> None:
    """Puts the report of the committed results beside the pages; result-files.md links to it."""
    from DeepCache.report import write_report

    if error is None and site.builder.format == "html":
        root = Path(__file__).parents[1]
        results = [root / "benchmarks/sd15_512_cpu.json", root / "src/DeepCache/app/ablation.json.gz"]
        write_report(results, Path(site.outdir) / "report.html")


def setup(site: Sphinx) -> None:
    site.connect("build-finished", write_the_report)
    site.add_lexer("csv", TextLexer)
