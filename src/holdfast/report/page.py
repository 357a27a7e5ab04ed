"""The page: one HTML file with its script, its style and its data, which asks nobody for anything.

A browser runs the script and the style of these very bytes and nothing else: the policy in the page names their
digests. Data is JSON in a block that no browser executes, and the script puts text in as text only.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import Any

SCRIPTS = (
    "text.js",
    "colours.js",
    "state.js",
    "charts.js",
    "pictures.js",
    "table.js",
    "overview.js",
    "metrics.js",
    "checkpoints.js",
    "areas.js",
    "treemap.js",
    "tensors.js",
    "detail.js",
    "changes.js",
    "record.js",
    "difference.js",
    "keyboard.js",
    "start.js",
)
"""The parts of the script, in order; each defines functions, and the last one starts."""
_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
)
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def page_text(data: dict[str, Any], title: str) -> str:
    """The whole page.

    Args:
        data: plain data; numbers are finite.
        title: of the browser's tab, as text.

    Returns:
        HTML. The same data and title always give the same bytes.
    """
    parts = {**_shell(), "title": html.escape(title), "data": data_text(data)}
    return _PLACE.sub(lambda match: parts[match[1]], _asset("page.html"))


def data_text(data: Any) -> str:
    """Data as JSON that no HTML parser takes for a tag, an entity or the end of its block. All of it is ASCII."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: _ESCAPES[match[0]], text)


@functools.cache
def _shell() -> dict[str, str]:
    """Script, style and the policy that lets a browser run just these."""
    script = "\n".join(['"use strict";', "{", *(_asset(name) for name in SCRIPTS), "}", ""])
    style = _asset("page.css")
    policy = _POLICY.format(script=_digest(script), style=_digest(style))
    return {"script": script, "style": style, "policy": policy}


def _asset(name: str) -> str:
    return files("holdfast.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
