"""What one export wrote and how near its answers are to the model's."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.runs.sizes import size_text
from holdfast.state.paths import printable


class Port(msgspec.Struct, frozen=True):
    """An input or output of the file.

    Attributes:
        name: as in the file, or as ``forward`` calls it where the format keeps no names.
        shape: sizes, or the names of axes whose size is open.
        dtype: ``float32``, ``int64``, ...
    """

    name: str
    shape: list[str | int]
    dtype: str

    def __str__(self) -> str:
        return f"{printable(self.name)} ({', '.join(map(str, self.shape))}) {self.dtype}"


class Comparison(msgspec.Struct, frozen=True):
    """One output for one input: the file's answer beside the model's.

    Attributes:
        input: which: ``example``, ``negated``, ``batch=7``, ...
        output: the output's name.
        max_abs: the largest difference.
        max_rel: the same, over the largest finite absolute value of the model's answer.
        cosine: of the angle between the two answers; None where one of them is zero.
        argmax: the share of rows (along the last axis) whose largest element is the same; None where there are none.
        allowed: the ``max_rel`` up to which the two are taken for the same.
        fault: what else differs: shapes, dtypes, places of NaN.
    """

    input: str
    output: str
    max_abs: float
    max_rel: float
    cosine: float | None
    argmax: float | None
    allowed: float
    fault: str | None = None

    @property
    def is_same(self) -> bool:
        """Whether the two answers are the same, to the tolerance."""
        return self.fault is None and self.max_rel <= self.allowed

    def __str__(self) -> str:
        if self.fault is not None:
            return self.fault
        return f"up to {self.max_abs:.3g} off, {self.max_rel:.1e} of the largest value, {self.allowed:.0e} is allowed"


class ExportReport(msgspec.Struct):
    """What one export wrote. ``print(report)`` is a table for people, ``to_dict()`` is for machines.

    Attributes:
        file: the file, as the caller named it.
        files: every file that belongs to it, in the same folder.
        format: ``onnx``, ``torch-export`` or ``torchscript``.
        how: ``dynamo`` (torch.export and its ONNX exporter), ``torch.export``, ``script`` or ``trace``.
        runtime: what ran the file in a process of its own, with its version.
        inputs: the inputs, with open axes by name.
        outputs: the outputs.
        bytes: of all files.
        seconds: from the call to the commit.
        compared: every output for every input that was tried.
        notes: what else a reader should know.
    """

    file: str
    files: list[str] = []
    format: str = ""
    how: str = ""
    runtime: str = ""
    inputs: list[Port] = []
    outputs: list[Port] = []
    bytes: int = 0
    seconds: float = 0.0
    compared: list[Comparison] = []
    notes: list[str] = []

    @property
    def worst(self) -> Comparison:
        """The comparison that comes nearest to its tolerance, or is farthest past it."""
        return max(self.compared, key=_badness)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts and lists."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result

    def __str__(self) -> str:
        answers = "same answers" if all(one.is_same for one in self.compared) else "OTHER ANSWERS"
        head = f"{printable(self.file)}: {self.format} ({self.how}), {size_text(self.bytes)}, {self.seconds:.1f} s"
        lines = [f"{head}, {answers} in {self.runtime}"]
        lines += [f"  file    {printable(name)}" for name in self.files[1:]]
        lines += [f"  input   {port}" for port in self.inputs]
        lines += [f"  output  {port}" for port in self.outputs]
        lines += _table(self.compared)
        lines += [f"notes ({len(self.notes)}):"] if self.notes else []
        return "\n".join(lines + [f"  {printable(note)}" for note in self.notes])


def _badness(one: Comparison) -> tuple[bool, float]:
    return one.fault is not None, one.max_rel / one.allowed if one.allowed else float(one.max_rel > 0) * 1e300


def _table(compared: list[Comparison]) -> list[str]:
    """One row for each input, of the output that is farthest off."""
    worst: dict[str, Comparison] = {}
    for one in compared:
        if one.input not in worst or _badness(one) > _badness(worst[one.input]):
            worst[one.input] = one
    rows = [("compared on", "worst output", "max abs", "max rel", "cosine", "argmax")]
    rows += [
        (
            printable(one.input),
            printable(one.output),
            f"{one.max_abs:.1e}",
            f"{one.max_rel:.1e}",
            "-" if one.cosine is None else f"{one.cosine:.6f}",
            "-" if one.argmax is None else f"{one.argmax:.0%}",
        )
        for one in worst.values()
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
