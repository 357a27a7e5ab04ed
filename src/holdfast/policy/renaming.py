"""A few regular expressions that rename what is to be renamed, and leave alone what is not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import count, islice

Segments = tuple[str, ...]
Edit = tuple[int, int, Segments]
"""Segments from, up to, and what comes in their place."""
Span = tuple[int, int, int, int]
"""An edit by places: from, up to in the name; from, up to in the target."""
Member = tuple[str, Segments, Segments]
"""A name as the file has it, its segments now, and those of its target."""
Rule = tuple[str, str]
"""A pattern and its replacement, as ``re.sub`` takes them."""

_MOST_RULES = 16
_ATTEMPTS = 160
_CONTEXTS = ((0, 0), (1, 0), (0, 1), (1, 1), (None, 0), (None, 1))
"""Segments kept on the left and right of what changes, so that a rule fits here and nowhere else; None: all."""
_LONGEST_PATTERN = 400
_SAMPLE = 48
"""Names of one group that propose rules: in a group that needs a rule for each name, 16 rules would not do anyway."""
_DIGITS = re.compile(r"\d+")
_PARTS = re.compile(r"\d+|\D+")


def rules_for(
    pairs: Mapping[str, str],
    settled: Mapping[str, str],
    others: Mapping[str, frozenset[str]],
    weights: Mapping[str, int],
) -> dict[str, str]:
    """Finds few rules that turn the names of ``pairs`` into their targets.

    Greedy: the rule that moves the most elements towards their target comes next, if no name gets further away. Where
    that leads into a corner, only rules that bring names all the way are tried.

    Args:
        pairs: name -> what it must become.
        settled: name -> the live name that it already stands for; a rule leaves it, or turns it into just that.
        others: any further name -> names that it must not become.
        weights: elements of each name in ``pairs``.

    Returns:
        Patterns and replacements in order, at most 16; names that no such rule reaches keep their own.
    """
    found: dict[str, str] = {}
    most = -1
    for whole in (False, True):
        rename, names = _greedy(pairs, settled, others, weights, whole)
        done = sum(weights[name] for name, target in pairs.items() if names[name] == target)
        if done > most:
            found, most = rename, done
        if all(names[name] == target for name, target in pairs.items()):
            break
    return found


def _greedy(
    pairs: Mapping[str, str],
    settled: Mapping[str, str],
    others: Mapping[str, frozenset[str]],
    weights: Mapping[str, int],
    whole: bool,
) -> tuple[dict[str, str], dict[str, str]]:
    names = {name: name for name in (*pairs, *settled, *others)}
    moved: dict[str, set[str]] = {}
    rename: dict[str, str] = {}
    refused: set[Rule] = set()
    for _ in range(_ATTEMPTS):
        rule = _best(names, pairs, weights, refused, whole)
        if rule is None or len(rename) == _MOST_RULES:
            break
        renamed = {name: re.sub(*rule, now) for name, now in names.items()}
        if rule[0] in rename or not _is_harmless(names, renamed, pairs, settled, others):
            refused.add(rule)
            continue
        moved[rule[0]] = {name for name, now in renamed.items() if now != names[name]}
        names, refused = renamed, set()
        rename[rule[0]] = rule[1]
    done = {name for name, target in pairs.items() if names[name] == target}
    needed = {pattern: text for pattern, text in rename.items() if moved[pattern] & done}
    first = {name: name for name in names}
    without = dict(first)
    for rule in needed.items():
        without = {name: re.sub(*rule, now) for name, now in without.items()}
    if all(without[name] == pairs[name] for name in done) and _is_harmless(first, without, pairs, settled, others):
        return needed, without
    return rename, names


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
    names: Mapping[str, str], pairs: Mapping[str, str], weights: Mapping[str, int], refused: set[Rule], whole: bool
) -> Rule | None:
    """The rule that the most elements ask for; of equals the one with the least context."""
    gain: dict[Rule, int] = defaultdict(int)
    rank: dict[Rule, tuple[int, int]] = {}
    for group in _alike(names, pairs):
        spans = _group_edits(group)
        asked: dict[tuple[Segments, tuple[Edit, ...]], int] = defaultdict(int)
        for name, segments, wanted in group:
            edits = tuple((start, end, wanted[first:last]) for start, end, first, last in spans)
            asked[_with_any_numbers(segments, edits), edits] += weights[name] + 1
        for (segments, edits), weight in islice(asked.items(), _SAMPLE):
            least = _size(edits) if whole else 0
            for place, nearer, rule in _rules(segments, edits):
                if nearer >= least:
                    gain[rule] += weight * nearer
                    rank.setdefault(rule, (place, len(rule[0])))
    fit = [rule for rule in gain if rule not in refused and len(rule[0]) <= _LONGEST_PATTERN]
    return min(fit, key=lambda rule: (-gain[rule], rank[rule], rule), default=None)


def _alike(names: Mapping[str, str], pairs: Mapping[str, str]) -> Iterable[list[Member]]:
    """What is still to be renamed, put together where names and targets differ in numbers alone."""
    groups: dict[tuple[Segments, Segments], list[Member]] = defaultdict(list)
    for name, target in pairs.items():
        if names[name] != target:
            segments, wanted = tuple(names[name].split(".")), tuple(target.split("."))
            groups[_without_numbers(segments), _without_numbers(wanted)].append((name, segments, wanted))
    return groups.values()


def _without_numbers(segments: Segments) -> Segments:
    return tuple(_DIGITS.sub("#", segment) for segment in segments)


def _with_any_numbers(segments: Segments, edits: tuple[Edit, ...]) -> Segments:
    """``segments`` with one and the same number wherever a rule takes any: names that ask for one rule become one."""
    edited = {place for start, end, _ in edits for place in range(start, end)}
    return tuple("0" if s.isdecimal() and place not in edited else s for place, s in enumerate(segments))


def _group_edits(group: list[Member]) -> tuple[Span, ...]:
    """The edits that all members share: a number of the name is one of the target only if it is so in every member."""
    have = tuple(zip(*(segments for _, segments, _ in group), strict=True))
    want = tuple(zip(*(wanted for _, _, wanted in group), strict=True))
    return _edits(have, want)


def _size(edits: Iterable[Edit]) -> int:
    return sum(end - start + len(fresh) for start, end, fresh in edits)


@lru_cache(maxsize=16384)
def _rules(segments: Segments, edits: tuple[Edit, ...]) -> tuple[tuple[int, int, Rule], ...]:
    """Rules that make one of the edits or all, each with the place of its context and how much nearer it leads."""
    found = []
    for counted in (False, True):
        for start, end, fresh in edits:
            for place, (left, right) in enumerate(_CONTEXTS):
                first = 0 if left is None else max(0, start - left)
                last = min(len(segments), end + right)
                if first < last or first == 0:
                    rule = _rule(segments, (first, last), ((start, end, fresh),), counted)
                    found.append((2 * place + counted, end - start + len(fresh), rule))
        if len(edits) > 1:
            rule = _rule(segments, (0, edits[-1][1]), edits, counted)
            found.append((2 * len(_CONTEXTS) + counted, _size(edits), rule))
    # Counted or not, a rule may come out the same: it is one rule, and counts once.
    return tuple({rule: (place, nearer, rule) for place, nearer, rule in reversed(found)}.values())


def _rule(segments: Segments, span: tuple[int, int], edits: tuple[Edit, ...], counted: bool) -> Rule:
    """The rule that makes the edits wherever the segments in ``span`` stand.

    Segments that stay may have any number in place of theirs; with ``counted`` this holds also for numbers that are
    part of a segment, and for those that an edit carries over (``blocks.0`` into ``layer_0``).
    """
    first, last = span
    pattern: list[str] = []
    replacement: list[str] = []
    group = 1
    place = first
    for start, end, fresh in (*edits, (last, last, ())):
        for segment in segments[place:start]:
            free = counted or segment.isdecimal()
            pattern.append(_expression(segment, free))
            replacement.append(_text(segment, group if free else None))
            group += len(_DIGITS.findall(segment)) if free else 0
        old = segments[start:end]
        numbers = _DIGITS.findall(".".join(old))
        free = counted and bool(numbers) and numbers == _DIGITS.findall(".".join(fresh))
        pattern += [_expression(segment, free) for segment in old]
        if fresh:
            replacement.append(_text(".".join(fresh), group if free else None))
        group += len(numbers) if free else 0
        place = end
    head = "^" if first == 0 else r"\."
    tail = "" if not pattern else "$" if last == len(segments) else r"\."
    before, after = ("." if first else ""), ("." if last < len(segments) else "")
    body = ".".join(replacement)
    # Between two dots that stay, nothing is one dot; at an end of the name it is none.
    text = before + body + after if body else before and after
    return head + r"\.".join(pattern) + tail, text


def _expression(segment: str, free: bool) -> str:
    return r"(\d+)".join(map(re.escape, _DIGITS.split(segment))) if free else re.escape(segment)


def _text(segment: str, group: int | None) -> str:
    """``segment`` as a replacement; its numbers are the groups from ``group`` on, or with None its own."""
    if group is None:
        return _literal(segment)
    numbers = count(group)
    return "".join(f"\\{next(numbers)}" if part.isdecimal() else _literal(part) for part in _PARTS.findall(segment))


def _literal(segment: str) -> str:
    return segment.replace("\\", "\\\\")


def _distance(name: str, target: str) -> int:
    """Segments to change. Only which numbers are equal matters: naming them by their order makes the layers alike."""
    labels: dict[str, str] = {}
    sides = [
        tuple(labels.setdefault(s, f"#{len(labels)}") if s.isdecimal() else s for s in text.split("."))
        for text in (name, target)
    ]
    return sum(end - start + last - first for start, end, first, last in _edits(sides[0], sides[1]))


@lru_cache(maxsize=16384)
def _edits(have: Sequence[Hashable], want: Sequence[Hashable]) -> tuple[Span, ...]:
    """What to replace in ``have`` so that it becomes ``want``: as few segments as can be, then in as few places.

    The dynamic programme of the longest common subsequence, with the state that counts places: whether the last step
    was inside an edit.
    """
    worst = (len(have) + len(want) + 1, 0)
    # cost[i][j][inside] is (segments changed, edits begun) for the first i and j segments.
    cost = [[[worst, worst] for _ in range(len(want) + 1)] for _ in range(len(have) + 1)]
    cost[0][0][0] = (0, 0)
    for i in range(len(have) + 1):
        for j in range(len(want) + 1):
            if i and j and have[i - 1] == want[j - 1]:
                cost[i][j][0] = min(cost[i - 1][j - 1])
            before = ([cost[i - 1][j]] if i else []) + ([cost[i][j - 1]] if j else [])
            steps = [(n + 1, edits + (not inside)) for cell in before for inside, (n, edits) in enumerate(cell)]
            cost[i][j][1] = min([worst, *steps])
    return _traced(len(have), len(want), cost)


def _traced(rows: int, columns: int, cost: list[list[list[tuple[int, int]]]]) -> tuple[Span, ...]:
    """The edits of the cheapest way, found from its end."""
    edits: list[Span] = []
    i, j = end, stop = rows, columns
    inside = cost[i][j][1] < cost[i][j][0]
    while i or j:
        n, begun = cost[i][j][inside]
        if not inside:
            i, j = i - 1, j - 1
            end, stop = i, j
            inside = cost[i][j][1] < cost[i][j][0]
            continue
        cells = ([(i - 1, j)] if i else []) + ([(i, j - 1)] if j else [])
        i, j, inside = next(
            (a, b, state)
            for a, b in cells
            for state in (True, False)
            if cost[a][b][state] == (n - 1, begun - (not state))
        )
        if not inside:
            edits.append((i, end, j, stop))
            end, stop = i, j
    return tuple(reversed(edits))
