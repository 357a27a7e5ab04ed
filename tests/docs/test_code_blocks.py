"""Every code block of the docs runs, in order, and prints what the page says it prints."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import holdfast
from tests.docs.pages import ROOT, Block, blocks, commands, pages, translated

ELSEWHERE = {
    "docs/remote.md": "tests/remote/test_page.py runs it, against a store",
    "docs/tutorials": "tests/tutorials runs it, block by block: many of them raise, which is what they show",
    "docs/lint.md": "tests/lint runs it: its commands exit with 1, since they find something",
    "docs/verbs/": "tests/docs/test_verb_pages.py runs them, with the exit code of each command",
}
"""Pages that another test runs, by how their names begin."""
HERE = [page for page in pages() if not page.startswith(tuple(ELSEWHERE))]
FRAMEWORKS = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        "The '.*_dataloader' does not have many workers",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
    )
]
"""What Lightning warns of, on the pages that use it."""
MARKS = {"docs/integrations.md": FRAMEWORKS, "docs/moving.md": FRAMEWORKS}
PAGES = [pytest.param(page, marks=MARKS.get(page, [])) for page in HERE if any(block.runs for block in blocks(page))]
LANGUAGES = [("README.md", "README.zh-CN.md"), *((one, two) for one, two in translated() if one in HERE)]
TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""What torchrun tells a program, here of one process, for the page that wants it."""
NOT_OURS = {"make", "git", "python", "pip"}
"""Programs in console blocks that other tests run: ``make test`` is the one that is running now."""


def as_shown(shown: str, printed: str) -> bool:
    """Whether output fits what a page shows: ``...`` stands for anything, runs of blanks count as one."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown.strip() + "\n", printed.strip() + "\n", options)


def run_python(page: str, block: Block, namespace: dict[str, Any]) -> str:
    """Runs a block in the page's namespace; an error's traceback shows the page and the line."""
    code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def run_console(page: str, block: Block) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(holdfast.__file__).parents[1]),
        "NO_COLOR": "1",
        "COLUMNS": "110",
    }
    for command in commands(block):
        if command.arguments[0] in NOT_OURS:
            continue
        assert command.arguments[0] == "holdfast", (
            f"{page}:{block.line}: {command.arguments[0]} is not run by this test"
        )
        line = [sys.executable, "-m", *command.arguments]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=60, check=False)
        where = f"{page}:{block.line}: {' '.join(command.arguments)}"
        assert done.returncode == 0, f"{where} exits {done.returncode}\n{done.stdout}{done.stderr}"
        assert not command.shown or as_shown(command.shown, done.stdout), f"{where} prints\n{done.stdout}"


@pytest.mark.timeout(300)  # a page with exports and many commands takes half a minute on a machine that is free
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the compiler imports it
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int) -> None:
    monkeypatch.chdir(tmp_path)
    program = ModuleType("__main__")  # where pickle looks for the classes of a page
    monkeypatch.setitem(sys.modules, "__main__", program)
    for name, value in TORCHRUN.items() if page == "docs/distributed.md" else ():
        monkeypatch.setenv(name, value)
    try:
        run_blocks(page, vars(program))
    finally:  # a block that fails must not leave its process group to the next page
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run_blocks(page: str, namespace: dict[str, Any]) -> None:
    printed = ""
    for block in blocks(page):
        if block.kind == "preamble":
            exec((ROOT / "tests/docs/preamble.py").read_text(encoding="utf-8"), namespace)
        elif block.kind == "python":
            printed = run_python(page, block, namespace)
        elif block.kind == "console":
            run_console(page, block)
        elif block.kind == "text":
            assert as_shown(block.text, printed), f"{page}:{block.line}: the block above prints\n{printed}"


@pytest.mark.parametrize(("english", "chinese"), LANGUAGES)
def test_both_languages_have_the_same_blocks(english: str, chinese: str) -> None:
    ours, theirs = (
        [(block.line, comparable(block)) for block in blocks(page) if block.kind not in ("heading", "")]
        for page in (english, chinese)
    )
    for (line, block), (other, same) in zip(ours, theirs, strict=True):
        assert block == same, f"{english}:{line} and {chinese}:{other} differ"


def comparable(block: Block) -> tuple[str, str]:
    """A block without its comments, which each page has in its own language."""
    if block.kind == "python":
        return block.kind, ast.unparse(ast.parse(block.text))
    if block.kind == "console":
        return block.kind, "\n".join(" ".join(command.arguments) for command in commands(block))
    return block.kind, block.text


def test_output_that_differs_is_seen() -> None:
    assert as_shown("epoch 3: ...", "epoch 3: loss 0.5\n")
    assert not as_shown("epoch 4: ...", "epoch 3: loss 0.5\n")


def test_a_block_that_fails_names_its_line(tmp_path: Path) -> None:
    block = Block("python", "fine = 1\nwrong = undefined\n", 40)
    with pytest.raises(NameError, match="undefined") as caught:
        run_python("README.md", block, {})
    assert caught.traceback[-1].lineno + 1 == 41


def test_torch_reads_the_readmes_files(tmp_path: Path) -> None:
    """The README says that plain torch.load reads what save writes."""
    net = torch.nn.Linear(2, 2)
    holdfast.save(net, tmp_path / "net.pt")
    state = torch.load(tmp_path / "net.pt", weights_only=True)
    assert all(state[name].equal(value) for name, value in net.state_dict().items())
