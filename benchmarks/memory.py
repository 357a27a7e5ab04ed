"""Peak resident memory above the model itself: P9 of docs/promises.md.

    python benchmarks/memory.py [--layers 12] [--folder DIR]

The state is GPT-2 with its AdamW moments, 1.49 GB, in a process that does nothing else. The kernel's high-water mark is
set back before each row, so what is counted is that row's alone; a first save and restore of three floats has loaded
and started what is loaded and started once. Converting and averaging never hold the model: what they need is counted
from nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from table import Row, at_most, finish, parser, peaks

_SETUP = """
from states import gpt2
holdfast.save({{"x": torch.ones(3)}}, folder / "warm.pt"); holdfast.load(folder / "warm.pt")
live = gpt2({layers})
"""
_STEP = """
for parameter in live.net.parameters():
    parameter.grad = torch.full_like(parameter, 0.01)
run = holdfast.Run(folder / "run", **live.objects, background=True, keep="last:1")
def steps(saves):
    for number in range(1, 5):
        saved = run.save(step=number) if saves else None
        live.optimizer.step()
        if saves:
            saved.wait()
"""
_FILES = """
holdfast.save({"x": torch.ones(3)}, folder / "warm.pt")
holdfast.convert(folder / "warm.pt", folder / "warm.safetensors")
holdfast.surgery.average([folder / "warm.pt"] * 2, folder / "mean.pt")
"""
_TURNED = """
turned = {"w": torch.ones(4096, 4096).t().contiguous().t(), "v": torch.ones(64, 512, 512).permute(2, 1, 0)}
holdfast.save(turned, folder / "turned.pt")
del turned
"""
Table = dict[str, tuple[str, float | None, str]]
"""Name of a row to (work, promised MB, note)."""

_LIVE: Table = {
    "save .pt": ("holdfast.save(live.objects, folder / 'g.pt')", 64, ""),
    "save .safetensors": ("holdfast.save(live.objects, folder / 'g.safetensors')", 64, ""),
    "restore .pt": ("holdfast.restore(folder / 'g.pt', **live.objects)", 64, ""),
    "restore .safetensors": ("holdfast.restore(folder / 'g.safetensors', **live.objects)", 64, ""),
    "torch.save": ("torch.save(live.tree, folder / 't.pt')", None, ""),
    "torch.load and load_state_dict": (
        "live.take_tree(torch.load(folder / 't.pt'))",
        None,
        "one more copy of the state",
    ),
}
_RUN = {"steps": "steps(saves=False)", "saves": "steps(saves=True)"}
_FILED: Table = {
    "convert .pt to .safetensors": ("holdfast.convert(folder / 'g.pt', folder / 'c.safetensors')", 256, ""),
    "convert .safetensors to .pt": ("holdfast.convert(folder / 'g.safetensors', folder / 'c.pt')", 256, ""),
    "convert 64 MB tensors that lie transposed": (
        "holdfast.convert(folder / 'turned.pt', folder / 'turned.safetensors')", 256, "two of them",
    ),
    "average of two .pt": (
        "holdfast.surgery.average([folder / 'g.pt', folder / 'g2.pt'], folder / 'a.pt', at='model')", 256, "",
    ),
}  # fmt: skip


def rows(folder: Path, setup: str, table: Table) -> list[Row]:
    """Measures one table in a process of its own."""
    found = []
    for name, peak in peaks(folder, setup, {key: work for key, (work, _, _) in table.items()}).items():
        _, bound, note = table[name]
        row = Row(name, peak, "MB", note=note)
        if bound is not None:
            at_most(row, "P9", bound)
        found.append(row)
    return found


def background(folder: Path, setup: str, copy: float) -> Row:
    """The row of a run that saves in the background: what four saves need above what the same four steps do.

    Args:
        folder: for the run.
        setup: makes the state and the run.
        copy: MB of the state.
    """
    found = peaks(folder, setup, _RUN)
    row = Row("four background saves, a step after each", found["saves"] - found["steps"], "MB")
    at_most(row, "P9", round(copy + 64))
    row.note = f"the state is {copy:.0f} MB; the steps alone take {found['steps']:.0f} MB, not counted here"
    return row


def main() -> None:
    """Measures and prints one table."""
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=12, help="of the model; fewer for a quick look")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        setup = _SETUP.format(layers=args.layers)
        found = rows(folder, setup, _LIVE)
        (folder / "t.pt").unlink()
        found.append(background(folder, setup + _STEP, (folder / "g.pt").stat().st_size / 2**20))
        (folder / "g2.pt").hardlink_to(folder / "g.pt")
        found += rows(folder, _FILES + _TURNED, _FILED)
    finish(args, "Peak resident memory above the model", found)


if __name__ == "__main__":
    main()
