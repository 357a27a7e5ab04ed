"""One page for each verb: as its help says, and its example prints what the page shows."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

import holdfast
from holdfast.cli.main import VERBS, verbs
from tests.docs.pages import ROOT, blocks, commands
from tests.docs.test_code_blocks import as_shown, run_python

FOLDER = ROOT / "docs" / "verbs"
EXITS = re.compile(r"# exits (\d)$", re.MULTILINE)


def module(name: str) -> ModuleType:
    """A file of docs/verbs, which is no package."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # where the generator looks for its examples
    spec.loader.exec_module(made)
    return made


examples = module("examples")
generate = module("generate")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_page_is_what_the_command_says(verb: str) -> None:
    page = (FOLDER / f"{verb}.md").read_text(encoding="utf-8")
    stale = f"docs/verbs/{verb}.md is stale: python docs/verbs/generate.py {verb}"
    assert page == generate.page(verb, generate.kept_console(verb)), stale
    if verb in examples.EXAMPLES:
        shown = [line[2:] for line in (generate.kept_console(verb) or "").splitlines() if line.startswith("$ ")]
        assert shown == list(examples.EXAMPLES[verb].commands), stale


def test_the_index_names_every_verb_and_no_page_is_left_over() -> None:
    assert (FOLDER / "index.md").read_text(encoding="utf-8") == generate.index()
    assert {file.stem for file in FOLDER.glob("*.md")} == {"index", *VERBS}
    assert set(examples.EXAMPLES) <= set(VERBS)


def test_every_option_is_explained() -> None:
    for verb in VERBS:
        command = verbs.get_command(click.Context(verbs), verb)
        assert command is not None
        silent = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
        assert not silent, f"{verb}: {silent}"


def test_a_page_that_is_stale_is_seen() -> None:
    page = generate.page("ls", generate.kept_console("ls"))
    assert "| `--json` | Print JSON. |" in page
    assert page != generate.page("ls", None)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("verb", sorted(name for name, one in examples.EXAMPLES.items() if one.runs))
def test_the_example_prints_what_the_page_shows(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeded: int
) -> None:
    monkeypatch.chdir(tmp_path)
    page = f"docs/verbs/{verb}.md"
    program = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    for block in blocks(page):
        if block.kind == "python":
            run_python(page, block, vars(program))
        elif block.kind == "console":
            run_commands(verb, block.text)


def run_commands(verb: str, text: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1]), "NO_COLOR": "1"}
    environment |= {"COLUMNS": "110", "PYTHONIOENCODING": "utf-8"}
    codes = [EXITS.search(line) for line in text.splitlines() if line.startswith("$ ")]
    (block,) = [one for one in blocks(f"docs/verbs/{verb}.md") if one.kind == "console"]
    for command, exits in zip(commands(block), codes, strict=True):
        line = [sys.executable, "-m", *command.arguments]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=100, check=False)
        assert done.returncode == (int(exits[1]) if exits else 0), f"{command.arguments}\n{done.stdout}{done.stderr}"
        shown = command.shown
        for mask in examples.EXAMPLES[verb].masks:
            shown = re.sub(mask, "...", shown.strip())
        assert as_shown(shown, done.stdout), f"{' '.join(command.arguments)} prints\n{done.stdout}"
