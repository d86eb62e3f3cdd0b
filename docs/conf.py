"""The documentation site: Sphinx over the Markdown of this folder, and the API reference from the docstrings.

``tools/docs`` builds it. Everything is local: no page is fetched, and the site loads nothing from elsewhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import uvirtio  # noqa: E402

project = "uvirtio"
author = "the uvirtio developers"
project_copyright = author
release = version = uvirtio.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = False  # types of other packages cannot be looked up without a network
suppress_warnings = ["ref.python"]  # Device is ours and VFIO's: a bare name in a signature may mean either

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"uvirtio {version}"
html_copy_source = False

# Pages of the repository outside this folder, by what the site calls them.
OUTSIDE = {
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../SECURITY.md": "security.md",
    "../README.md": "index.md",
    "../udev-rules/README.md": "udev.md",
    "../examples/README.md": "examples.md",
    "../findings/README.md": "findings.md",
}


def _links(text: str, folder: str) -> str:
    """The links of a page that lies in ``folder`` of the repository, as links between pages of the site."""

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if ":" in target or not target:
            return match[0]
        path = (HERE.parent / folder / target).resolve()
        if HERE in path.parents:
            target = str(path.relative_to(HERE))
        else:
            outside = f"../{path.relative_to(HERE.parent)}"
            target = OUTSIDE.get(outside, target)
            anchor = "" if target == "index.md" else anchor  # README's headings are not those of the index
        return f"]({target}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def _read(_app: Sphinx, name: str, source: list[str]) -> None:
    """A page that only says ``{include} ../FILE`` becomes that file; links are made links of the site."""
    include = re.fullmatch(r"```\{include\} (\S+)\n```\n?", source[0])
    if include is None:
        source[0] = _links(source[0], "docs")
    else:
        path = (HERE / include[1]).resolve()
        source[0] = _links(path.read_text(), str(path.parent.relative_to(HERE.parent)))


def _returns(section: GoogleDocstring, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
    lines = section._dedent(section._consume_to_next_section())
    return [("", "", lines)] if lines else []


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    # Google's style has "type: description" for attributes, and for what is returned or yielded. Ours have
    # annotations, and sentences with colons.
    GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end
    GoogleDocstring._consume_returns_section = _returns
    app.connect("source-read", _read)
