"""docs/errors.md, written from the source: ``python -m tests.house.errors_page``."""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator

from holdfast import errors
from tests.docs.pages import ROOT
from tests.house.raised import CLASSES, REASONS, Parts, Site, shown, sites, words

PAGE = ROOT / "docs" / "errors.md"

INTRODUCTION = """\
# Errors

Written from the source by `python -m tests.house.errors_page`; a test compares the two, and another one holds that a
test sees each of these messages.

You have a message in front of you: search this page for a few of its words. What stands in `<angle brackets>` here is a
name, number or reason there. Each message begins with the file or the path in the tree that it is about, and most say
what to do. What to do about the others is said once, under their class.

Every error that holdfast raises on purpose is a `holdfast.HoldfastError`. It has `file`, `path` (in the tree), `offset`
(a byte of the file) and `step` as attributes, each None where it does not apply. A command prints it as one line,
`holdfast: <message>`, and exits with the code of its class.

| exit code | means | classes |
|---|---|---|
"""
CODES = {
    1: "differs, or does not match",
    2: "corrupt or refused",
    3: "the call or the command line is wrong",
    4: "not found",
    5: "the machine: disk, lock, device, a missing package",
}
TO_DO = {
    "HoldfastError": "Catch this one to catch them all. It is raised itself by nothing.",
    "FormatError": "Use another copy of the file, or fetch it again. Nothing of it was loaded.",
    "UnknownFormat": "Look at what the message says that the file is. A download may have given a page or a pointer in "
    "place of the file; fetch it again. A file of a newer holdfast needs a newer holdfast.",
    "CorruptFile": "Use another copy of the file, or an older checkpoint: `holdfast verify` says which are good. A run "
    "goes on from its newest good checkpoint by itself. If a good copy becomes corrupt again, suspect the disk or the "
    "memory of the machine.",
    "RefusedFile": "Nothing of it was executed or loaded. `holdfast scan` says what it would import and call. Parts "
    "that "
    "are plain can be read: `holdfast.open`, `restore`, or `load(..., opaque=True)`.",
    "NotFound": "Compare the name with what the message says there is; `holdfast ls` lists the checkpoints of a run.",
    "MissingPart": "`holdfast inspect` shows what the file has; say where the part is with `at={'model': "
    "'path.in.file'}`, "
    "or leave the object out.",
    "MismatchError": "Nothing was changed. Make the live object as it was when the file was saved, or say what may "
    "differ "
    "with `match=holdfast.Warm(...)`; `dry_run=True` or `holdfast check` shows the whole difference first.",
    "AmbiguousPart": "Say which one with `at=`, as the message shows.",
    "UnsupportedValue": "The message names the value by its path. Store what it is made of, convert it as the message "
    "says, or leave it out. What was saved before is unchanged.",
    "SnapshotTorn": "Something changed a tensor in place while a background save read it, past what holdfast sees. The "
    "save was not committed; the one before is there. Call `run.wait()` before that code, or use `background=False`.",
    "UntrustedType": "Name the class in `trusted={...}` if it is plain data of your own code, or read the file "
    "without it: "
    "`restore`, `open`, `opaque=True`.",
    "ArgumentError": "Correct the call or the command as the message says. Nothing was read or written.",
    "ConfigMissing": "The message has the line to add, where the model is saved or where it is built.",
    "MachineError": "The file may be fine. Correct what the message says of the machine, and try again.",
    "StorageError": "Make room, correct permissions or mend the connection, and save again. What was committed before "
    "is "
    "intact.",
    "RestoreIncomplete": "The named tensors may be half written: restore again before you use them. `spare=True` "
    "keeps a "
    "copy and rolls back.",
    "RunLocked": "Stop the other process, or write to another folder. Reading a run needs no lock.",
    "DeviceUnavailable": 'Give `map_location="cpu"` or `"auto"`, or one of the devices that the message names.',
    "MissingExtra": "Run the line that the message has, in the same environment.",
}
"""What to do about each class: the advice that its messages need not repeat."""

ROOMS = {
    "__init__": "names of the package that are loaded when they are used",
    "api": "calls of the library",
    "cli": "the command line",
    "compat": "the drop-in for torch.save and torch.load",
    "distributed": "several processes",
    "export": "export, quantization and building",
    "formats": "files",
    "integrations": "frameworks",
    "lint": "reading of training scripts",
    "objects": "live objects",
    "policy": "load policies",
    "report": "pages",
    "runs": "runs and checkpoints",
    "serialization": "tensors",
    "state": "values",
    "storage": "disks and stores",
    "surgery": "key surgery and adoption",
    "testing": "tests of your own",
    "training": "training",
    "transfer": "save and restore",
}


def page() -> str:
    """The whole page."""
    kinds: dict[str, list[Site]] = defaultdict(list)
    for site in sites():
        kinds["reason" if site.kind in REASONS else site.kind].append(site)
    return "\n".join([INTRODUCTION.rstrip("\n"), *_codes(), "", *_tree(), *_classes(kinds), *_reasons(kinds["reason"])])


def _codes() -> Iterator[str]:
    for code, means in CODES.items():
        names = [name for name in _in_order() if CLASSES[name].exit_code == code]
        yield f"| {code} | {means} | {', '.join(_link(name) for name in names)} |"


def _tree() -> Iterator[str]:
    drawing = re.search(r"::\n\n(.*?)\n\n", errors.__doc__ or "", re.DOTALL)
    yield from ("```", textwrap.dedent(drawing[1]) if drawing else "", "```", "")


def _in_order() -> list[str]:
    return [name for name, one in vars(errors).items() if name in CLASSES and isinstance(one, type)]


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _classes(kinds: dict[str, list[Site]]) -> Iterator[str]:
    for name in _in_order():
        one = CLASSES[name]
        yield from (f"## {name}", "", f"{(one.__doc__ or '').splitlines()[0]} Exit code {one.exit_code}.", "")
        yield from (f"**What to do.** {TO_DO[name]}", "")
        rooms: dict[str, list[Site]] = defaultdict(list)
        for site in kinds[name]:
            rooms[site.room].append(site)
        for room, found in sorted(rooms.items()):
            yield from (
                f"In `{room.replace('__init__', 'holdfast')}`, {ROOMS.get(room, room)}:",
                "",
                *_messages(found),
                "",
            )


def _reasons(found: list[Site]) -> Iterator[str]:
    yield from ("## Reasons", "", "What stands as the reason in messages above.", "", *_messages(found))
    yield ""


def _messages(found: Iterable[Site]) -> Iterator[str]:
    """A line for each message, and one below it for each text that a part of it can be."""
    lines: dict[str, dict[str, None]] = {}
    for site in found:
        for parts in site.templates:
            inner = lines.setdefault(_code(parts), {})
            inner.update(dict.fromkeys(map(_code, filter(words, site.parts))))
    for line, inner in sorted(lines.items(), key=lambda item: _key(item[0])):
        yield f"- {line}"
        yield from (f"  - with {part}" for part in sorted(inner, key=_key))


def _code(parts: Parts) -> str:
    """A template as code: between more backticks than it has in a row, with the blanks that these ask for."""
    text = " ".join(shown(parts).split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _key(line: str) -> str:
    """For sorting: the letters of the message, without the file that most begin with."""
    return re.sub(r"[^a-z ]", "", line.lower().replace("`<file>`: ", ""))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
