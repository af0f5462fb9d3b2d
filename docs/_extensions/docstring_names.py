"""What stands in single backticks in a docstring: a link where it names something of the reference, else code.

The docstrings are written as Markdown has it, where reStructuredText would have two backticks or a role.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxRole
from sphinx.util.nodes import make_refnode

_MARK = "in_a_docstring"
# What a bare name may mean from anywhere; methods and attributes are only known within their class.
_BY_LAST_NAME = {"class", "exception", "function", "data"}


def setup(site: Sphinx) -> dict[str, bool]:
    site.add_role("name", _Name())
    site.connect("autodoc-process-docstring", _plurals)
    site.connect("config-inited", lambda site, config: setattr(config, "default_role", "name"))
    site.connect("missing-reference", _elsewhere, priority=100)
    return {"parallel_read_safe": True}


def _plurals(site: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Lets a word go on after the backtick, as in `Prompt`s."""
    lines[:] = [re.sub(r"(?<!`)(`[^`]+`)(?=\w)", r"\1\\ ", line) for line in lines]


class _Name(SphinxRole):
    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        code = nodes.literal(self.rawtext, self.text)
        known = {name: self.env.ref_context.get(name) for name in ("py:module", "py:class")}
        target = self.text.removesuffix("()")
        if not target.replace(".", "").isidentifier():
            return [code], []
        reference = addnodes.pending_xref(
            "", code, refdomain="py", reftype="obj", reftarget=target, refdoc=self.env.docname, **known
        )
        reference[_MARK] = True
        return [reference], []


def _elsewhere(site: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, code: nodes.Element) -> Any:
    if _MARK not in node:
        return None
    end = "." + node["reftarget"]
    places = {
        (entry.docname, entry.node_id)
        for name, entry in env.domains.python_domain.objects.items()
        if name.endswith(end) and entry.objtype in _BY_LAST_NAME
    }
    if len(places) != 1:
        return code
    ((page, anchor),) = places
    return make_refnode(site.builder, node["refdoc"], page, anchor, code)
