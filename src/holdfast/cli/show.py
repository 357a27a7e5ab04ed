"""``holdfast show``: the manifest of one checkpoint."""

from __future__ import annotations

import datetime
from typing import Any

import click

from holdfast.cli.output import say, say_json, say_table, size_text
from holdfast.cli.path import checkpoint_folder
from holdfast.runs.manifest import Manifest, metrics_to_json, read_manifest
from holdfast.runs.standing import verdict_on
from holdfast.state.encoding import to_json
from holdfast.state.paths import printable
from holdfast.state.tree_view import value_lines


@click.command("show", epilog="Example: holdfast show runs/a@best")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(ref: str, as_json: bool) -> None:
    """Print the manifest of the checkpoint REF: position, metrics, files, objects, environment.

    And what becomes of it: kept and why, or set aside and why.
    """
    folder = checkpoint_folder(ref)
    manifest = read_manifest(folder)
    verdict = verdict_on(folder, datetime.datetime.now(datetime.UTC))
    if as_json:
        say_json(_as_json(folder, manifest, verdict))
    else:
        _print(folder, manifest, verdict)


Verdict = tuple[str, tuple[str, ...]] | None


def _as_json(folder: str, manifest: Manifest, verdict: Verdict) -> dict[str, Any]:
    return {
        "path": folder,
        "standing": verdict[0] if verdict else None,
        "reasons": list(verdict[1]) if verdict else [],
        "size": sum(record.size for record in manifest.files.values()),
        "run": manifest.run,
        "step": manifest.step,
        "epoch": manifest.epoch,
        "batch": manifest.batch,
        "items": manifest.items_done,
        "time": manifest.time.isoformat(),
        "metrics": metrics_to_json(manifest.metrics),
        "files": {name: {"size": record.size, "digest": record.digest} for name, record in manifest.files.items()},
        "objects": to_json(manifest.objects, str),
        "environment": to_json(manifest.environment, str),
        "metadata": manifest.metadata,
    }


def _print(folder: str, manifest: Manifest, verdict: Verdict) -> None:
    say(printable(folder))
    position = [f"step {manifest.step}"]
    position += [
        f"{name} {value}" for name in ("epoch", "batch", "items") if (value := getattr(manifest, name)) is not None
    ]
    say(f"  {', '.join(position)}, {manifest.time:%Y-%m-%d %H:%M:%S %Z}, run {printable(manifest.run)}")
    if verdict is not None:
        say(f"  {verdict[0]}: {'; '.join(verdict[1])}")
    _section("metrics", [[printable(name), str(value)] for name, value in manifest.metrics.items()])
    _section(
        "files", [[name, size_text(record.size), printable(record.digest)] for name, record in manifest.files.items()]
    )
    for title, tree in (
        ("objects", manifest.objects),
        ("environment", manifest.environment),
        ("metadata", manifest.metadata),
    ):
        _section(title, [[printable(path), printable(text)] for path, text in value_lines(tree) if path != "(root)"])


def _section(title: str, rows: list[list[str]]) -> None:
    if rows:
        say()
        say_table([title, *("" for _ in rows[0][1:])], rows)
