"""Runs all benchmarks and writes their tables into benchmarks/README.md and docs/promises.md.

    python benchmarks/report.py [--only save_restore memory] [--quick]

A page has marks, ``<!-- table: NAME -->`` to ``<!-- end -->``, and what stands between them is replaced; what is
written by hand around them stays. ``NAME`` is a script, ``machine`` for where and when, or ``promises`` for all that is
promised. ``--quick`` runs everything as small as it goes, to see that it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from table import Result, Row, cells

HERE = Path(__file__).resolve().parent
PAGES = [HERE / "README.md", HERE.parent / "docs" / "promises.md"]
SCRIPTS: dict[str, tuple[list[str], list[str]]] = {
    "save_restore": (["--pairs", "3", "--no-memory"], ["--pairs", "1", "--layers", "1"]),
    "many_tensors": (["--pairs", "3", "--no-memory"], ["--pairs", "1", "--count", "500"]),
    "training": (["--pairs", "3", "--steps", "4"], ["--pairs", "1", "--layers", "1", "--steps", "2"]),
    "growth": (
        ["--pairs", "2", "--largest", "1e9", "--most", "50000"],
        ["--pairs", "1", "--largest", "5e6", "--most", "1000"],
    ),
    "memory": ([], ["--layers", "1"]),
    "opening": ([], []),
    "distributed": (["--pairs", "3"], ["--pairs", "1", "--megabytes", "16"]),
    "remote": (["--pairs", "3"], ["--pairs", "1", "--megabytes", "8"]),
    "gpu": ([], []),
}
"""Script to its options, and those of ``--quick``; all of them together take less than ten minutes with all peers."""


def run(script: str, quick: bool, folder: Path) -> Result | str | None:
    """What a script found: its rows, what it printed when it has no ``--json``, None when there is no such script."""
    path, file = HERE / f"{script}.py", folder / f"{script}.json"
    if not path.exists():
        return None
    command = [sys.executable, str(path), *SCRIPTS[script][quick]]
    done = subprocess.run([*command, "--json", str(file)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 2 and not file.exists():  # what argparse says of an option that it does not know
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(f"{script} failed with exit code {done.returncode}")
    return msgspec.json.decode(file.read_bytes(), type=Result) if file.exists() else done.stdout


def markdown(rows: list[Row]) -> str:
    """Rows as a table of a page."""
    heads, lines = cells(rows)
    rule = ["---"] * len(heads)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in [heads, rule, *lines]
    )


def block(found: Result | str) -> str:
    """What stands between a script's marks."""
    if isinstance(found, str):
        return f"```\n{found.strip()}\n```"
    parts = [f"{found.title}. {found.date}; {found.machine}; {found.versions}.", markdown(found.rows), *found.notes]
    return "\n\n".join(parts)


def promised(results: list[Result]) -> str:
    """A line for each row that something is promised of."""
    lines = ["| promise | measured on | value | ratios | |", "|---|---|---|---|---|"]
    rows = [row for result in results for row in result.rows if row.promise]
    for row in sorted(rows, key=lambda row: _number(row.promise)):
        ratios = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row.ratios.items() if f"x {peer}" in row.promise)
        verdict = "met" if row.met else "**not met**"
        value = "not measured" if row.value is None else f"{row.value:.3g} {row.unit}"
        lines.append(f"| {row.promise} | {row.what} | {value} | {ratios} | {verdict} |")
    return "\n".join(lines)


def _number(promise: str) -> tuple[int, str]:
    match = re.match(r"P(\d+)", promise)
    return (int(match[1]), promise) if match else (99, promise)


def filled(page: str, blocks: dict[str, str]) -> str:
    """A page with what stands between its marks replaced; marks without a block stay as they are."""

    def fill(match: re.Match[str]) -> str:
        text = blocks.get(match[1])
        return match[0] if text is None else f"<!-- table: {match[1]} -->\n\n{text}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


def main() -> None:
    """Runs, prints, and writes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS), metavar="SCRIPT")
    options.add_argument("--quick", action="store_true", help="as small as it goes; writes nothing")
    args = options.parse_args()
    found, times = {}, []
    with tempfile.TemporaryDirectory() as name:
        for script in args.only:
            print(f"== {script}", flush=True)
            begin = time.perf_counter()
            result = run(script, args.quick, Path(name))
            times.append(f"{script} {time.perf_counter() - begin:.0f} s")
            if result is not None:
                found[script] = result
    print(", ".join(times))
    if args.quick:
        return
    blocks = {script: block(result) for script, result in found.items()}
    results = [result for result in found.values() if isinstance(result, Result)]
    if set(args.only) == set(SCRIPTS):  # a part of the scripts says nothing of the other promises
        blocks["promises"] = promised(results)
        blocks["machine"] = (
            f"Measured on {results[0].date}: {results[0].machine}; {results[0].versions}. It took {', '.join(times)}."
        )
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
