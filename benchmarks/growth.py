"""What saving and restoring costs as a state grows: in bytes, and in tensors.

    python benchmarks/growth.py [--pairs 5] [--largest 2e9] [--most 200000] [--plots docs]

A model is saved and restored through the page cache, its parameters of one size each: 16 tensors of 1 MB to 2 GB in
all, and 10 to 200,000 tensors of 64 floats. ``--largest 8e9`` goes on to 8 GB, where memory and disk allow: three times
the largest must fit in memory, four times on the disk. Past 0.5 GB or 50,000 tensors one round after the first counts.

The slope is fitted to the upper half of the points, log to log, by least squares: 1.00 is linear. The fixed cost is the
time of the smallest state, of one tensor of 64 floats. ``--plots`` writes the two plots.
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import plot
import torch
from table import Case, Row, at_most, finish, measure, parser
from torch import nn

import holdfast

Points = dict[str, list[tuple[float, float]]]
"""Name of a curve to (size, seconds)."""
_BYTES = [1e6, 4e6, 16e6, 64e6, 256e6, 1e9, 2e9, 4e9, 8e9]
_COUNTS = [10, 100, 1_000, 10_000, 50_000, 200_000]
_SLOPE = 1.15
"""What counts as linear: from 10,000 tensors to 200,000 each costs half as much again, since the state outgrows
the CPU's caches. What is done for all pairs would be 2."""


def model(count: int, floats: int) -> nn.Module:
    """``count`` parameters of ``floats`` each, all touched."""
    return nn.ParameterList(nn.Parameter(torch.full((floats,), 0.5)) for _ in range(count))


def curves(net: nn.Module, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of each way to save and restore one model."""
    theirs, pt, st = folder / "torch.pt", folder / "ours.pt", folder / "ours.safetensors"

    def gone(path: Path) -> Callable[[], object]:
        return lambda: path.unlink(missing_ok=True)

    cases = {
        "save: torch": Case(lambda: torch.save(net.state_dict(), theirs), gone(theirs)),
        "save: ours .pt": Case(lambda: holdfast.save(net, pt, durable=False), gone(pt)),
        "save: ours .safetensors": Case(lambda: holdfast.save(net, st, durable=False), gone(st)),
        "restore: torch": Case(lambda: net.load_state_dict(torch.load(theirs))),
        "restore: ours .pt": Case(lambda: holdfast.restore(pt, model=net)),
        "restore: ours .safetensors": Case(lambda: holdfast.restore(st, model=net)),
    }
    return {name: statistics.median(values) for name, values in measure(cases, rounds).items()}


def grow(sizes: Sequence[tuple[float, int, int]], folder: Path, pairs: int) -> Points:
    """The curves over states of (size on the axis, tensors, floats in each)."""
    points: Points = {}
    for size, count, floats in sizes:
        large = count * floats * 4 > 5e8 or count > 50_000
        for name, seconds in curves(model(count, floats), folder, 1 if large else pairs).items():
            points.setdefault(name, []).append((size, seconds))
    return points


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of a line through the upper half of the points, log to log."""
    upper = [(math.log(size), math.log(seconds)) for size, seconds in points[len(points) // 2 :]]
    if len(upper) < 2:
        upper = [(math.log(size), math.log(seconds)) for size, seconds in points[-2:]]
    return statistics.linear_regression(*zip(*upper, strict=True)).slope


def slopes(title: str, points: Points) -> list[Row]:
    """A row for each curve."""
    rows = []
    for name, curve in points.items():
        row = Row(f"slope over {title}, {name}", slope(curve), "")
        row.note = f"{curve[-1][1]:.3g} s at {curve[-1][0]:,.0f} {title}"
        if "ours" in name:
            at_most(row, "growth", _SLOPE)
        rows.append(row)
    return rows


def fixed(folder: Path, pairs: int) -> list[Row]:
    """The smallest state: what a save or restore costs before its first byte."""
    rows = []
    for name, seconds in curves(model(1, 64), folder, 4 * pairs).items():
        row = Row(f"fixed cost, {name}", 1e3 * seconds, "ms")
        if "ours" in name:
            at_most(row, "growth", 10)
        rows.append(row)
    return rows


def room(folder: Path) -> float:
    """The largest state that memory and disk have room for."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    available = 1024 * int(fields["MemAvailable"].split()[0])
    return min(available / 3, shutil.disk_usage(folder).free / 4)


def main() -> None:
    """Measures and prints one table, and draws two plots when asked to."""
    options = parser(__doc__)
    options.add_argument("--largest", type=float, default=2e9, help="bytes of the largest state")
    options.add_argument("--most", type=int, default=200_000, help="tensors of the largest state")
    options.add_argument(
        "--plots", type=Path, default=None, metavar="DIR", help="write growth-bytes.svg, growth-tensors.svg"
    )
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        largest = min(args.largest, room(folder))
        fixed_rows = fixed(folder, args.pairs)
        by_bytes = grow([(size, 16, int(size) // 64) for size in _BYTES if size <= largest], folder, args.pairs)
        by_count = grow([(count, count, 64) for count in _COUNTS if count <= args.most], folder, args.pairs)
    if args.plots is not None:
        for file, title, axis, points in (
            ("growth-bytes.svg", "16 tensors", "bytes", by_bytes),
            ("growth-tensors.svg", "64 floats in each", "tensors", by_count),
        ):
            labelled = {f"{key}, slope {slope(curve):.2f}": curve for key, curve in points.items()}
            (args.plots / file).write_text(plot.svg(f"Seconds over {axis} ({title})", axis, labelled), encoding="utf-8")
    notes = [f"Capped at {largest:,.0f} bytes and {args.most:,} tensors."]
    rows = [*fixed_rows, *slopes("bytes", by_bytes), *slopes("tensors", by_count)]
    finish(args, "Cost against size", rows, notes)


if __name__ == "__main__":
    main()
