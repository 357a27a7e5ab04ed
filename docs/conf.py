"""How docs/ becomes a site: ``make docs``, or ``sphinx-build -W docs docs/_build/html``.

A page is Markdown that reads well where it lies, too. Only index.md and api.md have blocks of Sphinx's own.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import holdfast

HERE = Path(__file__).parent

project = "holdfast"
author = project_copyright = "The holdfast contributors"
release = version = holdfast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # headings are called as on a code host, so that a link to one works here and there
suppress_warnings = ["myst.xref_missing"]  # it knows no `<a id="...">`; tests/docs/test_site.py follows every link

highlight_language = "none"  # of blocks that name no language: drawings and output

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # ours are sentences; napoleon takes what stands before a colon for a type

html_theme = "furo"
html_title = f"holdfast {release}"
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}


def only_pages_that_are_there(app: Sphinx, page: str, source: list[str]) -> None:
    """Takes out of index.md's lists what no page answers to; a page that no list has is a warning of Sphinx's."""

    def there(line: re.Match[str]) -> str:
        return line[0] if any(HERE.glob(f"{line[1]}.md")) else ""

    if page == "index":
        text, *lists = source[0].split("```{toctree}\n")
        found = [re.sub(r"^([\w./*-]+)\n", there, one, flags=re.MULTILINE) for one in lists]
        source[0] = "```{toctree}\n".join([text, *found])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", only_pages_that_are_there)
