"""Whether a file gives the model's answers: what both say is compared, output by output and input by input."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from holdfast.errors import ArgumentError, MismatchError, UnsupportedValue
from holdfast.export.cases import Case
from holdfast.export.example import Example
from holdfast.export.quiet import first_line
from holdfast.export.report import Comparison, ExportReport
from holdfast.state.paths import printable

TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""How far an output may be off, over its largest value; docs/design/007-leaving-pytorch.md says why."""
_COARSE = 0.25
_COMPLEX = {torch.complex128: torch.float64, torch.complex64: torch.float32}


class Asked(NamedTuple):
    """What the model itself answers.

    Attributes:
        cases: the inputs that it takes.
        answers: the leaves of its answer to each.
        seconds: what it took for all of them.
        notes: which inputs it does not take, and why.
    """

    cases: list[Case]
    answers: list[list[Any]]
    seconds: float
    notes: list[str]


def first_answer(module: nn.Module, example: Example) -> Any:
    """The model's answer to the example.

    Raises:
        ArgumentError: the model does not take it.
        UnsupportedValue: it gives another answer when it is asked again, or something that is no tensor.
    """
    args, kwargs = example.arguments()
    name = type(module).__name__
    try:
        answer, again = module(*args, **kwargs), module(*args, **kwargs)
    except Exception as reason:  # whatever the model's forward raises
        said = f"{type(reason).__name__}: {first_line(reason)}"
        raise ArgumentError(f"example=: {name} does not take it: {said}") from reason
    leaves, others = pytree.tree_leaves(answer), pytree.tree_leaves(again)
    odd = [kind for leaf in leaves if (kind := _odd(leaf))]
    if odd or not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise UnsupportedValue(
            f"{name} answers with {odd[0] if odd else 'no tensor'}; what is exported answers with tensors, alone or in "
            "tuples, lists and dicts"
        )
    differing = [one for one in compare("example", others, leaves, None) if not one.is_same]
    if differing or len(leaves) != len(others):
        raise UnsupportedValue(
            f"{name} gives another answer to the same input when it is asked again, in eval mode: "
            f"`{differing[0].output}` is {differing[0]}. A file can't be compared with it. Look for random numbers "
            "outside of nn.Dropout, functional.dropout without training=self.training, and values that forward keeps"
        )
    return answer


def _odd(leaf: Any) -> str | None:
    """What a part of an answer is, when it is nothing that can be compared."""
    if isinstance(leaf, torch.Tensor):
        return f"a tensor {leaf.layout}" if leaf.layout is not torch.strided else None
    return None if isinstance(leaf, bool | int | float | str | None) else f"a {type(leaf).__name__}"


def ask_model(module: nn.Module, example: Example, cases: Sequence[Case]) -> Asked:
    """The model's own answers. An input that it does not take is left out, and said; the example it takes."""
    asked = Asked([], [], 0.0, [])
    start = time.monotonic()
    for case in cases:
        args, kwargs = example.arguments([_own(leaf) for leaf in case.leaves])
        try:
            answer = module(*args, **kwargs)
        except Exception as reason:  # whatever the model's forward raises
            said = f"{type(reason).__name__}: {first_line(reason, 120)}"
            asked.notes.append(f"not tried on {case.name}: the model itself does not take it: {said}")
            continue
        asked.cases.append(case)
        asked.answers.append([_own(leaf) for leaf in pytree.tree_leaves(answer)])
    return asked._replace(seconds=time.monotonic() - start)


def _own(leaf: Any) -> Any:
    """A copy, so that a forward that writes into its input changes no other case."""
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def judge(
    report: ExportReport, asked: Asked, answered: Sequence[list[Any] | str], names: list[str], tolerance: Any
) -> None:
    """Compares all answers and adds them to the report.

    Raises:
        MismatchError: one is farther off than is allowed, or the runtime did not take an input that the model takes.
    """
    failed: list[tuple[str, str]] = []
    for case, mine, theirs in zip(asked.cases, asked.answers, answered, strict=True):
        if isinstance(theirs, str):
            failed.append((case.name, first_line(theirs)))
            continue
        # ONNX has tensors only
        held = [at for at, leaf in enumerate(mine) if report.format != "onnx" or isinstance(leaf, torch.Tensor)]
        report.compared += compare(case.name, theirs, [mine[at] for at in held], [names[at] for at in held], tolerance)
    differing = [one for one in report.compared if not one.is_same]
    if not failed and not differing:
        return
    file = printable(report.file)
    if failed:
        name, said = failed[0]
        others = f" (and {len(failed) - 1} more inputs)" if len(failed) > 1 else ""
        text = f"does not take `{name}`{others}, which the model takes: {said}"
    else:
        inputs = list(dict.fromkeys(one.input for one in differing))
        worst = max(differing, key=lambda one: (one.fault is not None, one.max_rel))
        text = (
            f"gives other answers than the model on {len(inputs)} of {len(asked.cases)} inputs ({', '.join(inputs)}): "
            f"`{printable(worst.output)}` on `{worst.input}`: {worst}"
        )
    error = MismatchError(
        f"`{file}`: written as {report.format} ({report.how}), {report.runtime} {text}; {_advice(report)}; nothing was "
        "written",
        file=report.file,
    )
    error.report = report
    raise error


def _advice(report: ExportReport) -> str:
    if report.how == "trace":
        return "a trace keeps the one path that the example took: does a branch or a loop in forward depend on values?"
    return "if that is near enough for you, give tolerance="


def compare(
    case: str, theirs: Sequence[Any], mine: Sequence[Any], names: Sequence[str] | None, tolerance: float | None = None
) -> list[Comparison]:
    """Two answers, output by output; one that is missing is a difference of its own."""
    if len(theirs) != len(mine):
        return [_faulty(case, "all", f"{len(theirs)} outputs, the model has {len(mine)}")]
    shown = names if names is not None and len(names) == len(mine) else [f"output {at}" for at in range(len(mine))]
    return [
        _compare_leaf(case, name, other, own, tolerance) for name, other, own in zip(shown, theirs, mine, strict=True)
    ]


def _faulty(case: str, name: str, fault: str) -> Comparison:
    return Comparison(case, name, float("inf"), float("inf"), None, None, 0.0, fault)


def _compare_leaf(case: str, name: str, theirs: Any, mine: Any, tolerance: float | None) -> Comparison:
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        same = type(mine) is type(theirs) and mine == theirs
        fault = None if same else f"{_short(theirs)}, the model has {_short(mine)}"
        return Comparison(case, name, 0.0, 0.0, None, None, 0.0, fault)
    if theirs.shape != mine.shape or theirs.dtype != mine.dtype:
        return _faulty(case, name, f"{_short(theirs)}, the model has {_short(mine)}")
    allowed = _allowed(mine.dtype, tolerance)
    off, scale, fault = _distance(theirs, mine)
    return Comparison(case, name, off, off / scale, _cosine(theirs, mine), _argmax(theirs, mine), allowed, fault)


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return printable(repr(value)[:60])


def _allowed(dtype: torch.dtype, tolerance: float | None) -> float:
    if dtype is torch.bool:
        return 0.0
    if tolerance is not None:
        return tolerance
    if not dtype.is_floating_point and not dtype.is_complex:
        return 0.0
    return TOLERANCES.get(_COMPLEX.get(dtype, dtype), _COARSE)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """All values as float64 or complex128."""
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()


def _distance(theirs: torch.Tensor, mine: torch.Tensor) -> tuple[float, float, str | None]:
    """The largest difference, the largest value of the model's, and what can't be measured."""
    if not mine.numel():
        return 0.0, 1.0, None
    a, b = _wide(theirs), _wide(mine)
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf"), 1.0, f"NaN in {int(a.isnan().sum())} places, the model has {int(b.isnan().sum())}"
    endless = a.isinf() | b.isinf()
    if not torch.equal(a[endless], b[endless]):
        return float("inf"), 1.0, f"infinite in {int(a.isinf().sum())} places, the model in {int(b.isinf().sum())}"
    finite = a.isfinite() & b.isfinite()
    if not bool(finite.any()):
        return 0.0, 1.0, None
    off = float((a[finite] - b[finite]).abs().max())
    # integers past 2**53 are not all numbers of float64
    if off == 0.0 and not mine.is_floating_point() and not mine.is_complex() and not torch.equal(theirs, mine):
        off = 1.0
    return off, float(b[finite].abs().max()) or 1.0, None


def _cosine(theirs: torch.Tensor, mine: torch.Tensor) -> float | None:
    if not mine.is_floating_point():
        return None
    a, b = _wide(theirs).reshape(-1), _wide(mine).reshape(-1)
    finite = a.isfinite() & b.isfinite()
    a, b = a[finite], b[finite]
    norms = float(a.norm() * b.norm())
    return min(float(a @ b) / norms, 1.0) if norms else None


def _argmax(theirs: torch.Tensor, mine: torch.Tensor) -> float | None:
    if not mine.is_floating_point() or not mine.ndim or mine.shape[-1] < 2 or not mine.numel():
        return None
    return float((_wide(theirs).argmax(-1) == _wide(mine).argmax(-1)).double().mean())
