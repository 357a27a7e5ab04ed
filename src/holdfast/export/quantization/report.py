"""What quantizing did to a model: its size, its answers and its speed, before and after."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from holdfast.export.quantization.data import Batch
from holdfast.formats.base import StoredTensor
from holdfast.state.flatten import leaves
from holdfast.state.paths import printable
from holdfast.transfer.save import document_of

_RUNS = 15
_SECONDS = 1.0
"""Most runs of each model, and most seconds, for the speed."""


class QuantizeReport(msgspec.Struct):
    """What quantizing did to a model. ``print(report)`` is a table for people, ``to_dict()`` is for machines.

    Attributes:
        model: the float module's class.
        recipe: its name.
        backend: the engine that int8 layers are packed for, or None.
        layers: name -> class of each quantized layer.
        calibrated: batches that the ranges come from.
        bytes_before: of the float model's state, as it is saved.
        bytes_after: of the quantized one's.
        compared: answers that were compared; 0 without an example or calibration data.
        max_abs: the largest difference of an output, or None.
        cosine: of the angle between all outputs before and after, or None.
        argmax_agreement: share of the answers whose largest output is the same one, 0 to 1, or None.
        metric_before: what ``evaluate`` gave for the float model, or None.
        metric_after: and for the quantized one.
        seconds_before: median time of the float model for the example, or None.
        seconds_after: and of the quantized one.
    """

    model: str
    recipe: str
    backend: str | None
    layers: dict[str, str]
    calibrated: int
    bytes_before: int
    bytes_after: int
    compared: int = 0
    max_abs: float | None = None
    cosine: float | None = None
    argmax_agreement: float | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    seconds_before: float | None = None
    seconds_after: float | None = None

    @property
    def speed(self) -> float | None:
        """How many times as fast as the float model it is, or None."""
        if self.seconds_before is None or not self.seconds_after:
            return None
        return self.seconds_before / self.seconds_after

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, with ``speed``."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result | {"speed": self.speed}

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in Counter(self.layers.values()).items())
        for_engine = f" for {self.backend}" if self.backend else ""
        seen = f", {self.calibrated} batches of calibration" if self.calibrated else ""
        share = self.bytes_after / self.bytes_before if self.bytes_before else 1.0
        rows = [("bytes", f"{self.bytes_before:,}", f"{self.bytes_after:,}", f"x {share:.2f}")]
        if self.seconds_before is not None and self.seconds_after is not None:
            before, after = (f"{seconds * 1000:.3g}" for seconds in (self.seconds_before, self.seconds_after))
            rows.append(("ms for the example", before, after, f"{self.speed or 0:.2f} times as fast"))
        if self.metric_before is not None and self.metric_after is not None:
            off = self.metric_after - self.metric_before
            rows.append(("evaluate", f"{self.metric_before:.6g}", f"{self.metric_after:.6g}", f"{off:+.3g}"))
        widths = [max(len(row[at]) for row in (("", "float", "quantized"), *rows)) for at in range(3)]
        head = ("", "float", "quantized", "")
        lines = [f"{printable(self.model)} by {self.recipe}{for_engine}: {len(self.layers)} layers ({kinds}){seen}"]
        for name, before, after, said in (head, *rows):
            cells = f"  {name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}  {said}"
            lines.append(cells.rstrip())
        lines.append(f"  {self._answers()}")
        return "\n".join(lines)

    def _answers(self) -> str:
        if self.max_abs is None or self.cosine is None:
            return "answers were not compared: give example= or calibration="
        agreed = (
            "" if self.argmax_agreement is None else f", the largest output is the same for {self.argmax_agreement:.1%}"
        )
        return f"answers to {self.compared} batches: up to {self.max_abs:.3g} off, cosine {self.cosine:.6f}{agreed}"


def state_bytes(model: nn.Module) -> int:
    """Bytes of a module's state as it is saved, what is shared once."""
    document, _ = document_of(model, row_major=False)
    segments = {id(leaf.segment): leaf.segment for _, leaf in leaves(document.tree) if isinstance(leaf, StoredTensor)}
    return sum(segment.length for segment in segments.values())


def compare(report: QuantizeReport, before: nn.Module, after: nn.Module, batches: Sequence[Batch]) -> None:
    """Asks both modules the same and adds what differs to the report."""
    agreed = asked = 0
    old, new = [], []
    for batch in batches:
        with torch.no_grad():
            theirs, ours = list(_tensors(batch.asked_of(before))), list(_tensors(batch.asked_of(after)))
        if not theirs or [one.shape for one in theirs] != [one.shape for one in ours]:
            continue
        report.compared += 1
        old += [one.double().flatten().cpu() for one in theirs]
        new += [one.double().flatten().cpu() for one in ours]
        if theirs[0].dim() > 1:
            classes = 1 if theirs[0].dim() > 3 else -1  # as images have them, and sentences
            same = theirs[0].argmax(classes).cpu() == ours[0].argmax(classes).cpu()
            agreed, asked = agreed + int(same.sum()), asked + same.numel()
    if not report.compared:
        return
    left, right = torch.cat(old), torch.cat(new)
    if left.numel():
        report.max_abs = float((left - right).abs().max())
        length = float(left.norm() * right.norm())
        report.cosine = float(left @ right) / length if length else 1.0 if torch.equal(left, right) else 0.0
    report.argmax_agreement = agreed / asked if asked else None


def _tensors(answer: Any) -> Iterator[torch.Tensor]:
    """The tensors of numbers in an answer."""
    if isinstance(answer, torch.Tensor):
        if not answer.is_complex() and answer.layout is torch.strided:
            yield answer.dequantize() if answer.is_quantized else answer
    elif isinstance(answer, dict):
        for value in answer.values():
            yield from _tensors(value)
    elif isinstance(answer, list | tuple):
        for value in answer:
            yield from _tensors(value)


def time_both(report: QuantizeReport, before: nn.Module, after: nn.Module, example: Batch) -> None:
    """Adds the median times of both modules for an example, run in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _SECONDS
    with torch.no_grad():
        for model in (before, after):  # the first run of each is no measure
            example.asked_of(model)
        while len(times[0]) < _RUNS and (len(times[0]) < 3 or time.perf_counter() < end):
            for model, into in zip((before, after), times, strict=True):
                begin = time.perf_counter()
                example.asked_of(model)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                into.append(time.perf_counter() - begin)
    report.seconds_before, report.seconds_after = (statistics.median(one) for one in times)
    if not math.isfinite(report.seconds_before):
        report.seconds_before = None
