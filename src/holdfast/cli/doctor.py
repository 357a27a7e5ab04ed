"""``holdfast doctor``: versions, extras, the machine, and what the file system of a folder can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, say_table, size_text
from holdfast.state.paths import printable
from holdfast.storage.filesystem import FileSystem, examine

UNFIT = 5
_PACKAGES = ("torch", "numpy", "safetensors", "click", "rich", "msgspec", "xxhash", "isal")
_TESTED = ((3, 11), (3, 13))
_REQUIREMENT = re.compile(r"""(?P<name>[\w.-]+).*;\s*extra\s*==\s*["'](?P<extra>[\w-]+)["']""")
_DRIVER = "/proc/driver/nvidia/version"
_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


@click.command("doctor", epilog="Example: holdfast doctor runs")
@click.argument("folder", metavar="[DIR]", default=".")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, as_json: bool) -> int:
    """Print versions and extras, find GPUs, and try in DIR (the current folder by default) what saving does.

    A small folder is committed in DIR, linked, locked and removed again. Neither torch nor a model is loaded.
    Exits 5 when runs can't be saved in DIR.
    """
    disk = examine(folder)
    unfit = [one for one in disk.features if one.needed and not one.works]
    gpus, gpu_note = _gpus()
    found: dict[str, Any] = {
        "versions": _versions(),
        "extras": _extras(),
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpus": gpus,
            "gpu_note": gpu_note,
        },
        "disk": {
            "folder": disk.folder,
            "kind": disk.kind,
            "free": disk.free,
            "total": disk.total,
            "features": [
                {"name": one.name, "works": one.works, "needed": one.needed, "detail": one.detail}
                for one in disk.features
            ],
        },
        "not_promised": not_promised(sys.platform, sys.version_info[:2], sys.implementation.name, disk),
    }
    if as_json:
        say_json(found)
    else:
        _print(found)
    return UNFIT if unfit else 0


def not_promised(system: str, python: tuple[int, ...], implementation: str, disk: FileSystem) -> list[str]:
    """What holdfast does not promise here, since it is not tested.

    Args:
        system: ``sys.platform``.
        python: its version, two numbers.
        implementation: ``cpython``.
        disk: where runs are to be saved.
    """
    found = []
    if system != "linux":
        found.append(f"the system {system}: only Linux is tested; portable paths are taken")
    if not _TESTED[0] <= python <= _TESTED[1]:
        tested = " to ".join(".".join(map(str, one)) for one in _TESTED)
        found.append(f"Python {'.'.join(map(str, python))}: {tested} are tested")
    if implementation != "cpython":
        found.append(f"Python's implementation {implementation}: only CPython is tested")
    if sys.byteorder != "little":
        found.append("a big-endian machine: files are little-endian, and nothing is tested here")
    if disk.shared:
        found.append(
            f"{disk.kind} is shared between machines: that a lock or an fsync holds for all of them is its server's "
            "promise; let one machine write a run"
        )
    found += [f"{one.name}: {one.detail}" for one in disk.features if one.needed and not one.works]
    return found


def _versions() -> dict[str, str | None]:
    from holdfast import __version__

    own = {"holdfast": __version__, "python": platform.python_version()}
    return own | {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    """The version of an installed package; it is not imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, list[str]]:
    """Each extra with its packages that are missing."""
    try:
        requirements = importlib.metadata.requires("holdfast") or []
    except importlib.metadata.PackageNotFoundError:
        return {}  # run from its source: nobody has written down what belongs to it
    extras: dict[str, list[str]] = {}
    for match in filter(None, map(_REQUIREMENT.match, requirements)):
        missing = extras.setdefault(match["extra"], [])
        if _version(match["name"]) is None:
            missing.append(match["name"])
    return extras


def _gpus() -> tuple[list[str], str]:
    """A line for each GPU, and what could not be asked."""
    program = shutil.which("nvidia-smi")
    driver = os.path.exists(_DRIVER)
    if program is None:
        return [], f"{'a' if driver else 'no'} NVIDIA driver ({_DRIVER}), and no nvidia-smi to ask"
    try:
        answer = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError) as reason:
        return [], f"nvidia-smi does not answer: {reason}"
    if answer.returncode:
        return [], f"nvidia-smi fails: {(answer.stdout + answer.stderr).strip()[:200]}"
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()], ""


def _print(found: dict[str, Any]) -> None:
    rows = [[name, version or "not installed"] for name, version in found["versions"].items()]
    say_table(["versions", ""], rows)
    if found["extras"]:
        say()
        rows = [
            [f"[{name}]", f"missing: {', '.join(missing)}" if missing else "complete"]
            for name, missing in found["extras"].items()
        ]
        say_table(["extras", ""], rows)
    machine, disk = found["machine"], found["disk"]
    say()
    gpus = [["gpu", printable(gpu)] for gpu in machine["gpus"]] or [["gpu", f"none: {printable(machine['gpu_note'])}"]]
    say_table(["machine", ""], [["system", machine["system"]], ["cores", str(machine["cores"])], *gpus])
    say()
    say(f"{printable(disk['folder'])}: {disk['kind'] or 'unknown'}, {_room(disk)} free")
    for one in disk["features"]:
        mark = coloured("works", "green") if one["works"] else coloured("fails", "red")
        say(f"  {one['name']:<12} {mark}  {printable(one['detail'])}")
    say()
    if found["not_promised"]:
        say("not promised here")
        for line in found["not_promised"]:
            say(coloured(f"  {printable(line)}", "yellow"))
    else:
        say("not promised here: nothing; this is what is tested")


def _room(disk: dict[str, Any]) -> str:
    return f"{size_text(disk['free'])} of {size_text(disk['total'])}"
