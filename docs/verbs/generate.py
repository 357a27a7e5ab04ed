"""Writes docs/verbs/*.md: one page for each verb of the command line, out of its own help and examples.py.

    python docs/verbs/generate.py          # all pages
    python docs/verbs/generate.py diff ls  # some
    python docs/verbs/generate.py --keep   # all, with the output that they have

A test compares the pages with what this would write. The output of examples is compared in a test that runs them,
since some of it is another in each place.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from examples import EXAMPLES, Example
from holdfast.cli.main import VERBS, verbs

HERE = Path(__file__).resolve().parent
CODES = {
    0: "done",
    1: "differs, or does not match",
    2: "corrupt, refused, or of a kind that is not read",
    3: "the command line is wrong",
    4: "no such file, run or checkpoint",
    5: "the machine: disk, lock, a package that is missing",
}
_INTRODUCTION = """\
Every verb has `--json`, for programs, and `--help` with an example. Errors are one line on stderr. Names that come out
of files are printed escaped. Work that takes long shows how far it is on stderr, with a bar on a terminal; `NO_COLOR`
is honoured. Verbs that build or measure a model need torch (`pip install "holdfast[torch]"`); the others answer
without it."""
_CONSOLE = re.compile(r"^```(?:console|shell)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXITS = re.compile(r"# exits (\d)$")


def page(verb: str, console: str | None) -> str:
    """The page of a verb.

    Args:
        verb: its name.
        console: commands and their output; None for a verb without an example.
    """
    command = verbs.get_command(click.Context(verbs, info_name="holdfast"), verb)
    if command is None:
        raise SystemExit(f"holdfast has no verb {verb}")
    example = EXAMPLES.get(verb)
    parts = [
        f"# holdfast {verb}",
        _capital(VERBS[verb]) + ".",
        _help(command),
        f"```sh\n{_usage(command, verb)}\n```",
        *_arguments(command),
        "## Example",
    ]
    if example is not None and console is not None:
        kind = "console" if example.runs else "shell"
        parts += [f"```python\n{example.setup.strip()}\n```", f"```{kind}\n{console.strip()}\n```"]
    else:
        parts.append(f"```sh\n{(command.epilog or '').removeprefix('Example: ')}\n```")
    if example is not None and example.python:
        parts += ["## In Python", f"```python\n{example.python}\n```"]
    return "\n\n".join([*parts, "## Exit codes", _codes(example)]) + "\n"


def index() -> str:
    """The page that leads to all others."""
    rows = [f"| [{verb}]({verb}.md) | {text} |" for verb, text in VERBS.items()]
    codes = [f"| {code} | {text} |" for code, text in CODES.items()]
    return (
        "\n\n".join(
            [
                "# The command line",
                _INTRODUCTION,
                "\n".join(["| verb | does |", "|---|---|", *rows]),
                "## Exit codes",
                "\n".join(["| code | means |", "|---|---|", *codes]),
                "A training that a signal n ends after its save exits with 128 + n.",
                "These pages are written by `python docs/verbs/generate.py` out of the commands themselves.",
            ]
        )
        + "\n"
    )


def kept_console(verb: str) -> str | None:
    """The console block that a page has now."""
    file = HERE / f"{verb}.md"
    match = _CONSOLE.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    return None if match is None else match[1]


def fresh_console(example: Example) -> str:
    """The commands of an example with what they print now."""
    source = str(HERE.parents[1] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "NO_COLOR": "1", "COLUMNS": "110", "PYTHONIOENCODING": "utf-8"}
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        setup = [sys.executable, "-W", "ignore", "-c", example.setup]
        subprocess.run(setup, cwd=folder, env=environment, check=True, capture_output=True)
        for command in example.commands:
            shell = f'holdfast() {{ "{sys.executable}" -W ignore -m holdfast "$@"; }}; {command}'
            done = subprocess.run(
                ["bash", "-c", shell], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            match = _EXITS.search(command)
            if done.returncode != (int(match[1]) if match else 0):
                raise SystemExit(f"{command}: exits {done.returncode}\n{done.stdout}{done.stderr}")
            printed = re.sub(r"(?<=Linux )(\d+\.\d+)\S*", r"\1", done.stdout)  # not the build of the writer's kernel
            lines += [f"$ {command}", printed.strip()]
    return "\n".join(lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _help(command: click.Command) -> str:
    """The paragraphs of a command's help, each on one line."""
    paragraphs = re.split(r"\n\s*\n", (command.help or "").strip())
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)


def _usage(command: click.Command, verb: str) -> str:
    context = click.Context(command, info_name=f"holdfast {verb}")
    return " ".join([context.command_path, *command.collect_usage_pieces(context)])


def _arguments(command: click.Command) -> list[str]:
    options = [one for one in command.params if isinstance(one, click.Option)]
    rows = []
    for option in options:
        record = option.get_help_record(click.Context(command))
        if record is not None:
            name, text = (part.replace("|", "\\|") for part in record)
            rows.append(f"| `{name}` | {' '.join(text.split())} |")
    return ["\n".join(["| option | |", "|---|---|", *rows])] if rows else []


def _codes(example: Example | None) -> str:
    texts = {**CODES}
    if example is not None and example.one:
        texts[1] = example.one
    elif example is not None:
        del texts[1]
    return "\n".join(["| code | means |", "|---|---|", *(f"| {code} | {text} |" for code, text in texts.items())])


def main() -> None:
    """Writes the pages that are named, or all."""
    keep = "--keep" in sys.argv
    for verb in [one for one in sys.argv[1:] if one != "--keep"] or VERBS:
        example = EXAMPLES.get(verb)
        console = None if example is None else kept_console(verb) if keep else fresh_console(example)
        (HERE / f"{verb}.md").write_text(page(verb, console), encoding="utf-8")
    (HERE / "index.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main()
