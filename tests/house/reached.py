"""Which places of the package made an error while the tests ran: what the rule of test_messages.py can't tell.

A plug-in of pytest, off unless asked for: ``REACHED=folder pytest -p tests.house.reached`` writes the lines into a file
for each process, and ``python -m tests.house.reached folder`` says which places no test reached. What happens in
processes that tests start is not seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from holdfast import errors
from tests.house.raised import CLASSES, sites
from tests.house.source_tree import ROOT

DEEP = 12
"""Callers of which the line is kept: an error is often made in a function that does nothing else."""
_seen: set[str] = set()


def pytest_configure() -> None:
    folder = Path(os.environ["REACHED"])
    folder.mkdir(parents=True, exist_ok=True)
    made = errors.HoldfastError.__init__

    def watched(self: errors.HoldfastError, *args: Any, **kwargs: Any) -> None:
        new = set(_lines(sys._getframe(1))) - _seen
        if new:
            _seen.update(new)
            with (folder / str(os.getpid())).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in sorted(new))
        made(self, *args, **kwargs)

    errors.HoldfastError.__init__ = watched  # type: ignore[method-assign]


def _lines(frame: FrameType | None) -> Iterator[str]:
    for _ in range(DEEP):
        if frame is None:
            return
        if frame.f_code.co_filename.startswith(f"{ROOT}/src/"):
            yield f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back


def main(folder: str) -> None:
    reached = {line for file in Path(folder).iterdir() for line in file.read_text(encoding="utf-8").splitlines()}
    places = [site for site in sites() if site.kind in CLASSES]
    missed = [site for site in places if site.where not in reached]
    print(*(f"{site.where}: {site.kind}" for site in missed), sep="\n")
    print(f"{len(places) - len(missed)} of {len(places)} places were reached")


if __name__ == "__main__":
    main(sys.argv[1])
