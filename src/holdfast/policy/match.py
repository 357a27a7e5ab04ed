"""The decision whether a file fits a live object: pure, and the only place that decides strictness."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from holdfast.errors import MismatchError
from holdfast.policy.dtype import is_lossless
from holdfast.policy.names import align, without_wrappers
from holdfast.policy.report import Difference, LoadReport
from holdfast.spec import TensorSpec
from holdfast.state.paths import printable


class Exact(msgspec.Struct, frozen=True):
    """The default policy: every key and every shape must agree.

    Wrapper prefixes (DataParallel, DistributedDataParallel, torch.compile) are understood on both sides. Casts that
    keep every value (float16 into float32) are made and reported; casts that lose some are refused.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> saved = holdfast.save(net, "net.pt")
        >>> holdfast.restore("net.pt", model=net, match=holdfast.Exact()).is_exact
        True
    """


class Matched(msgspec.Struct):
    """How one object's names pair up.

    Attributes:
        pairs: live name -> stored name, for everything that will be loaded.
        report: what differs; names carry no prefix of the object.
    """

    pairs: dict[str, str]
    report: LoadReport


def match(
    stored: Mapping[str, TensorSpec],
    live: Mapping[str, TensorSpec],
    policy: Exact,
    *,
    aliases: Mapping[str, str] | None = None,
) -> Matched:
    """Pairs the names of a file with those of a live object.

    Args:
        stored: the file's tensors by name.
        live: the object's tensors by name.
        policy: what may differ.
        aliases: live names that share memory with another live name; loading one loads both.

    Returns:
        The pairs and a report; the report is complete even when the policy then refuses it.
    """
    aliases = aliases or {}
    names = align(stored, live)
    pairs: dict[str, str] = {}
    report = LoadReport()
    for stored_name, live_name in names.items():
        have, want = stored[stored_name], live[live_name]
        difference = Difference(live_name, str(have), str(want))
        if have.shape != want.shape or not is_lossless(have.dtype, want.dtype):
            report.mismatched.append(difference)
            continue
        if have.dtype != want.dtype:
            report.cast.append(difference)
        if stored_name != live_name:
            report.renamed[live_name] = stored_name
        pairs[live_name] = stored_name
    taken = set(names)
    filled = {aliases.get(name, name) for name in pairs}
    report.unexpected = [name for name in stored if name not in taken]
    refused = {item.name for item in report.mismatched}
    for name in live:
        if name in pairs or name in refused:
            continue
        (report.tied if aliases.get(name, name) in filled else report.missing).append(name)
    report.loaded = list(pairs)
    report.coverage = _coverage(live, set(pairs) | set(report.tied))
    report.suggestions = _suggestions(report)
    return Matched(pairs, report)


def check(report: LoadReport, policy: Exact, file: str, part: str) -> None:
    """Raises MismatchError when the policy does not allow what the report found.

    The message shows the first difference of each kind; ``error.report`` has all of them.
    """
    if report.is_exact:
        return
    reasons = [str(item) for item in report.mismatched[:3]]
    if report.missing:
        reasons.append(f"the file lacks {_some(report.missing)}")
    if report.unexpected:
        reasons.append(f"the object lacks {_some(report.unexpected)}")
    hint = f" ({report.suggestions[0]})" if report.suggestions else ""
    error = MismatchError(
        f"`{file}`: does not fit `{part}`, nothing was changed: {'; '.join(reasons)}{hint}", file=file, path=part
    )
    error.report = report
    raise error


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{printable(name)}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _coverage(live: Mapping[str, TensorSpec], filled: set[str]) -> float:
    total = sum(spec.numel for spec in live.values())
    return sum(live[name].numel for name in filled) / total if total else 1.0


def _suggestions(report: LoadReport) -> list[str]:
    if report.loaded or not report.unexpected or not report.missing:
        return []
    wanted = {without_wrappers(name) for name in report.missing}
    for name in report.unexpected:
        segments = name.split(".")
        for cut in range(1, len(segments)):
            if ".".join(segments[cut:]) in wanted:
                return [f"names in the file begin with {'.'.join(segments[:cut])!r}: restore that part with at="]
    return ["no name of the file is a name of the object: is this the right file, or the right part of it (at=)?"]
