"""The decision whether a file fits a live object: pure, and the only place that decides strictness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from holdfast.errors import MismatchError
from holdfast.policy.dtype import judge_cast
from holdfast.policy.names import align, policy_names
from holdfast.policy.policies import Policy, Warm
from holdfast.policy.report import Difference, LoadReport
from holdfast.policy.shape import common_box, may_resize
from holdfast.policy.suggest import suggest
from holdfast.spec import TensorSpec
from holdfast.state.paths import printable

_AVERAGED = "n_averaged"
"""The counter that AveragedModel keeps beside the wrapped model: part of the wrapper, not of the model."""


class Matched(msgspec.Struct):
    """How one object's names pair up.

    Attributes:
        pairs: live name -> stored name, for everything that will be loaded.
        checked: live names whose cast may lose values, to be looked at before anything is written.
        report: what differs; names carry no prefix of the object.
    """

    pairs: dict[str, str]
    checked: list[str]
    report: LoadReport


def match(
    stored: Mapping[str, TensorSpec],
    live: Mapping[str, TensorSpec],
    policy: Policy,
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

    Raises:
        MismatchError: the policy gives two names of the file one name.
    """
    aliases = aliases or {}
    names = policy_names(stored, policy)
    aligned = align(names.values(), live)
    found = {old: aligned[new] for old, new in names.items() if new in aligned}
    matched = Matched({}, [], LoadReport())
    for old, name in found.items():
        _pair(old, name, stored[old], live[name], policy, matched)
    _rest(names, found, live, aliases, matched)
    report = matched.report
    dropped = [name for name in stored if name not in names]
    if dropped:
        report.notes.append(f"dropped {len(dropped)} names of the file: {_some(dropped)}")
    report.loaded = list(matched.pairs)
    report.coverage = _coverage(stored, live, matched)
    if report.unexpected and report.missing and (better := suggest(stored, live)) is not None:
        report.suggestions = [str(better)]
    return matched


def _pair(old: str, name: str, have: TensorSpec, want: TensorSpec, policy: Policy, matched: Matched) -> None:
    """Judges one pair of names."""
    report = matched.report
    difference = Difference(name, str(have), str(want))
    cast = judge_cast(have.dtype, want.dtype, policy)
    resized = have.shape != want.shape
    if cast == "refused" or (resized and not may_resize(name, have.shape, want.shape, policy)):
        report.mismatched.append(difference)
        return
    if resized:
        report.resized.append(difference)
    if cast != "same":
        report.cast.append(difference)
    if cast == "checked":
        matched.checked.append(name)
    if old != name:
        report.renamed[name] = old
    matched.pairs[name] = old


def _rest(
    names: Mapping[str, str],
    found: Mapping[str, str],
    live: Mapping[str, TensorSpec],
    aliases: Mapping[str, str],
    matched: Matched,
) -> None:
    """What has no partner on the other side."""
    report = matched.report
    filled = {aliases.get(name, name) for name in matched.pairs}
    refused = {item.name for item in report.mismatched}
    report.unexpected = [name for name in names if name not in found]
    for name in live:
        if name not in matched.pairs and name not in refused:
            (report.tied if aliases.get(name, name) in filled else report.missing).append(name)
    for side, where in ((report.unexpected, "file"), (report.missing, "object")):
        if side == [_AVERAGED] and matched.pairs:
            side.clear()
            report.notes.append(f"`{_AVERAGED}` of the {where}'s AveragedModel has no counterpart and is left alone")


def check(report: LoadReport, policy: Policy, file: str, part: str) -> None:
    """Raises MismatchError when the policy does not allow what the report found.

    The message shows the first differences of each kind; ``error.report`` has all of them.
    """
    if isinstance(policy, Warm):
        reasons = _warm_reasons(report, policy)
    else:
        reasons = [] if report.is_exact else _differences(report)
    if not reasons:
        return
    hint = f". Try {report.suggestions[0]}" if report.suggestions else ""
    error = MismatchError(
        f"`{file}`: does not fit `{part}`, nothing was changed: {'; '.join(reasons)}{hint}", file=file, path=part
    )
    error.report = report
    raise error


def _warm_reasons(report: LoadReport, policy: Warm) -> list[str]:
    if not report.loaded:
        return ["no name of the file is a name of the object with its shape", *_differences(report)]
    if report.coverage < policy.min_coverage:
        found, wanted = f"{report.coverage:.1%}", f"min_coverage={policy.min_coverage:g}"
        reason = f"only {found} of the elements are in the file, {wanted} asks for more (lower it if that is meant)"
        return [reason, *_differences(report)]
    return []


def _differences(report: LoadReport) -> list[str]:
    reasons = [str(item) for item in report.mismatched[:3]]
    if len(report.mismatched) > 3:
        reasons.append(f"{len(report.mismatched) - 3} more differ")
    if report.missing:
        reasons.append(f"the file lacks {_some(report.missing)}")
    if report.unexpected:
        reasons.append(f"the object lacks {_some(report.unexpected)}")
    return reasons


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{printable(name)}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _coverage(stored: Mapping[str, TensorSpec], live: Mapping[str, TensorSpec], matched: Matched) -> float:
    """Loaded elements / live elements; of a resized tensor only the part that both have counts."""
    total = sum(spec.numel for spec in live.values())
    loaded = sum(live[name].numel for name in matched.report.tied)
    for name, old in matched.pairs.items():
        loaded += math.prod(common_box(stored[old].shape, live[name].shape))
    return loaded / total if total else 1.0
