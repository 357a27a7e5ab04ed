"""A few regular expressions that rename what is to be renamed, and leave alone what is not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache

Segments = tuple[str, ...]
Edit = tuple[int, int, Segments]
"""Segments from, up to, and what comes in their place."""
Rule = tuple[str, str]
"""A pattern and its replacement, as ``re.sub`` takes them."""

_MOST_RULES = 16
_ATTEMPTS = 160
_CONTEXTS = ((0, 0), (1, 0), (0, 1), (1, 1), (None, 0), (None, 1))
"""Segments kept on the left and right of what changes, so that a rule fits here and nowhere else; None: all."""
_LONGEST_PATTERN = 400


def rules_for(
    pairs: Mapping[str, str],
    settled: Mapping[str, str],
    others: Mapping[str, frozenset[str]],
    weights: Mapping[str, int],
) -> dict[str, str]:
    """Finds few rules that turn the names of ``pairs`` into their targets.

    Greedy: the rule that moves the most elements towards their target comes next, if no name gets further away.

    Args:
        pairs: name -> what it must become.
        settled: name -> the live name that it already stands for; a rule leaves it, or turns it into just that.
        others: any further name -> names that it must not become.
        weights: elements of each name in ``pairs``.

    Returns:
        Patterns and replacements in order, at most 16; names that no such rule reaches keep their own.
    """
    names = {name: name for name in (*pairs, *settled, *others)}
    rename: dict[str, str] = {}
    refused: set[Rule] = set()
    for _ in range(_ATTEMPTS):
        rule = _best(names, pairs, weights, refused | set(rename.items()))
        if rule is None or len(rename) == _MOST_RULES:
            break
        renamed = {name: re.sub(*rule, now) for name, now in names.items()}
        if rule[0] in rename or not _is_harmless(names, renamed, pairs, settled, others):
            refused.add(rule)
            continue
        names, refused = renamed, set()
        rename[rule[0]] = rule[1]
    return rename


def _is_harmless(
    before: Mapping[str, str],
    after: Mapping[str, str],
    pairs: Mapping[str, str],
    settled: Mapping[str, str],
    others: Mapping[str, frozenset[str]],
) -> bool:
    if len(set(after.values())) != len(after):
        return False
    for name, now in after.items():
        if now == before[name]:
            continue
        if name in pairs:
            if _distance(now, pairs[name]) > _distance(before[name], pairs[name]):
                return False
        elif name in settled:
            if now != settled[name]:
                return False
        elif now in others[name]:
            return False
    return True


def _best(
    names: Mapping[str, str], pairs: Mapping[str, str], weights: Mapping[str, int], refused: set[Rule]
) -> Rule | None:
    """The rule that the most elements ask for; of equals the one with the least context."""
    gain: dict[Rule, int] = defaultdict(int)
    rank: dict[Rule, tuple[int, int]] = {}
    for name, target in pairs.items():
        if names[name] == target:
            continue
        for place, nearer, rule in _rules(names[name], target):
            gain[rule] += (weights[name] + 1) * nearer
            rank.setdefault(rule, (place, len(rule[0])))
    fit = [rule for rule in gain if rule not in refused and len(rule[0]) <= _LONGEST_PATTERN]
    return min(fit, key=lambda rule: (-gain[rule], rank[rule], rule), default=None)


@lru_cache(maxsize=16384)
def _rules(name: str, target: str) -> tuple[tuple[int, int, Rule], ...]:
    """Rules that bring ``name`` nearer to ``target``, each with the place of its context and how much nearer."""
    segments = tuple(name.split("."))
    edits = _edits(segments, tuple(target.split(".")))
    found = []
    for start, end, fresh in edits:
        for place, (left, right) in enumerate(_CONTEXTS):
            first = 0 if left is None else max(0, start - left)
            last = min(len(segments), end + right)
            rule = _rule(segments, (first, last), ((start, end, fresh),))
            if rule is not None:
                found.append((place, end - start + len(fresh), rule))
    if len(edits) > 1:
        rule = _rule(segments, (0, edits[-1][1]), edits)
        if rule is not None:
            found.append((len(_CONTEXTS), _distance(name, target), rule))
    return tuple(found)


def _rule(segments: Segments, span: tuple[int, int], edits: tuple[Edit, ...]) -> Rule | None:
    """The rule that makes the edits wherever the segments in ``span`` stand, whatever their numbers outside the edits;
    None when there is nothing to find them by.
    """
    first, last = span
    if first == last and first > 0:
        return None
    edited = {place for start, end, _ in edits for place in range(start, end)}
    fresh = {start: new for start, _, new in edits}
    pattern: list[str] = []
    replacement: list[str] = []
    groups = 0
    for place in range(first, last + 1):
        replacement += map(_literal, fresh.get(place, ()))
        if place == last:
            break
        is_number = segments[place].isdecimal() and place not in edited
        groups += is_number
        pattern.append(r"(\d+)" if is_number else re.escape(segments[place]))
        if place not in edited:
            replacement.append(f"\\{groups}" if is_number else _literal(segments[place]))
    head = "^" if first == 0 else r"\."
    tail = "" if not pattern else "$" if last == len(segments) else r"\."
    before, after = ("." if first else ""), ("." if last < len(segments) else "")
    body = ".".join(replacement)
    # Between two dots that stay, nothing is one dot; at an end of the name it is none.
    text = before + body + after if body else before and after
    return head + r"\.".join(pattern) + tail, text


def _literal(segment: str) -> str:
    return segment.replace("\\", "\\\\")


def _distance(name: str, target: str) -> int:
    edits = _edits(tuple(name.split(".")), tuple(target.split(".")))
    return sum(end - start + len(fresh) for start, end, fresh in edits)


@lru_cache(maxsize=16384)
def _edits(have: Segments, want: Segments) -> tuple[Edit, ...]:
    """What to replace in ``have``, as so that it becomes ``want``; the ends are aligned
    first, by the longest common subsequence.
    """
    size = [[0] * (len(want) + 1) for _ in range(len(have) + 1)]
    for i, mine in enumerate(have):
        for j, yours in enumerate(want):
            size[i + 1][j + 1] = size[i][j] + 1 if mine == yours else max(size[i][j + 1], size[i + 1][j])
    edits: list[Edit] = []
    i, j = len(have), len(want)
    end, stop = i, j
    while i or j:
        if i and j and have[i - 1] == want[j - 1]:
            if (i, j) != (end, stop):
                edits.append((i, end, want[j:stop]))
            i, j = i - 1, j - 1
            end, stop = i, j
        elif j and (not i or size[i][j - 1] >= size[i - 1][j]):
            j -= 1
        else:
            i -= 1
    if (end, stop) != (0, 0):
        edits.append((0, end, want[:stop]))
    return tuple(reversed(edits))
