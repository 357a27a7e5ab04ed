"""docs/remote.md runs, against a server of its own, and its layout is the one in docs/format.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from holdfast.storage.remote import store
from tests.docs.pages import ROOT, blocks
from tests.docs.test_code_blocks import as_shown, run_console, run_python
from tests.remote.servers import Server, use

PAGE = "docs/remote.md"


def test_blocks_run(moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int) -> None:
    use(moto, monkeypatch)
    moto.ask("PUT", "/models", b"")
    monkeypatch.chdir(tmp_path)
    program = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    namespace, printed, ran = vars(program), "", 0
    for block in blocks(PAGE):
        if block.kind == "preamble":
            exec((ROOT / "tests/docs/preamble.py").read_text(encoding="utf-8"), namespace)
        elif block.kind == "python":
            printed, ran = run_python(PAGE, block, namespace), ran + 1
        elif block.kind == "console":
            run_console(PAGE, block)
        elif block.kind == "text":
            assert as_shown(block.text, printed), f"{PAGE}:{block.line}: the block above prints\n{printed}"
    assert ran == 3
    store._store.cache_clear()


def test_the_page_tells_the_limits_that_hold() -> None:
    """Numbers in prose are numbers of the code."""
    from holdfast.runs import lease

    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert f"anew every {lease.RENEWED:.0f} seconds" in text
    assert f"after {lease.LEASE:.0f} seconds" in text
    assert f"parts of {store.PART >> 20} MiB" in text
    assert (store.Limits().retries, store.Limits().seconds) == (6, 60.0)
    assert re.search(r"up to six\s+times within a minute", text)
