"""Makes the links from the source pages back to the reference lead there.

`sphinx.ext.viewcode` makes each of them as if everything in a module were in the reference under one name, be it that
of the module or that of a package which imports from it. What is there under another name gets a link to the page.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r'(class="viewcode-back" href="[^"#]*)#([^"]*)"')


def setup(site: Sphinx) -> dict[str, bool]:
    site.connect("html-page-context", _mend)
    return {"parallel_read_safe": True}


def _mend(site: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    if page.startswith("_modules/"):
        known = site.env.domains.python_domain.objects
        context["body"] = _LINK.sub(lambda link: link[0] if link[2] in known else f'{link[1]}"', context["body"])
