"""Which tensor of a file is which tensor of a live object, when their names differ.

Three kinds of evidence, the strongest first; none of them ever chooses between equals:

1. a suffix of the name (in one spelling, see vocabulary.py) that, with its shape, is unique on both sides;
2. a module whose shapes are unique on both sides, alone or together with the end of its name;
3. modules that follow each other with the same shapes in the same order, where equal shapes are told apart by counting
   names (``features.0``, ``features.2``) on both sides.

Each is a seed: it says that one prefix stands for another, and everything under the two prefixes whose remaining names
and shapes agree is then paired.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from holdfast.policy.vocabulary import LEAVES, canonical, opposed
from holdfast.spec import TensorSpec

Segments = tuple[str, ...]
Shape = tuple[int, ...]
Signature = frozenset[tuple[str, Shape]]

_LONGEST_NAME = 512
_MOST_SEGMENTS = 24
_LANDINGS = 200_000
"""Names looked at while prefixes are tried: bounds the time that a file of hostile names can take."""
_STRONG = 4
"""Tensors with equal names and shapes, matrices of two shapes among them, that need no further evidence."""
_DIGITS = re.compile(r"\d+")


class Side:
    """The names of one side, ready to be asked about.

    Args:
        names: what may be paired, with its shape, in the order of the file or the object.
    """

    def __init__(self, names: Mapping[str, TensorSpec]) -> None:
        usable = {name: spec for name, spec in names.items() if _is_usable(name)}
        spelled = {name: canonical(name) for name in usable}
        often = Counter(spelled.values())
        self.spelled = {name: s if often[s] == 1 else tuple(name.split(".")) for name, s in spelled.items()}
        self.shapes = {name: tuple(usable[name].shape) for name in usable}
        self.named = {segments: name for name, segments in self.spelled.items()}
        self.under: dict[Segments, list[str]] = defaultdict(list)
        self.modules: dict[Segments, dict[str, Shape]] = defaultdict(dict)
        for name, segments in self.spelled.items():
            for cut in range(len(segments)):
                self.under[segments[:cut]].append(name)
            cut = len(segments) - (segments[-1] in LEAVES)
            self.modules[segments[:cut]][segments[-1] if cut < len(segments) else ""] = self.shapes[name]
        self.families = _families(self.modules)

    def signature(self, module: Segments) -> Signature:
        """The shapes of one module; the step counter of a batch norm does not count, since old files lack it."""
        return frozenset(item for item in self.modules[module].items() if item[0] != "num_batches_tracked")

    def matrices(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` with two dimensions or more: a vector of 64 is found everywhere, a matrix is not."""
        return [name for name in names if len(self.shapes.get(name, ())) >= 2]

    @property
    def is_input_first(self) -> bool:
        """Whether matrices lie as ``Conv1D`` of GPT-2 has them: a bias is as long as the rows, not the columns."""
        weights = ((leaves.get("weight", ()), leaves.get("bias", ())) for leaves in self.modules.values())
        return any(len(weight) == 2 and weight[0] != weight[1] and bias == weight[1:] for weight, bias in weights)

    def ranks(self, prefix: Segments) -> list[tuple[int, int, int]]:
        """For each numbered container in ``prefix``: its place, its rank among its siblings, how many these are."""
        found = []
        for place, segment in enumerate(prefix):
            family = self.family(prefix, place)
            if len(family) > 1 and segment in family:
                found.append((place, family[segment], len(family)))
        return found

    def family(self, prefix: Segments, place: int) -> dict[str, int]:
        """The containers that are called like the one at ``place``, but for the number, in order, with their rank."""
        return self.families.get((prefix[:place], _DIGITS.sub("#", prefix[place])), {})


def _families(modules: Iterable[Segments]) -> dict[tuple[Segments, str], dict[str, int]]:
    found: dict[tuple[Segments, str], set[str]] = defaultdict(set)
    for module in modules:
        for place, segment in enumerate(module[:-1]):
            if _DIGITS.search(segment):
                found[module[:place], _DIGITS.sub("#", segment)].add(segment)
    return {
        key: {text: rank for rank, text in enumerate(sorted(segments, key=lambda text: (_numbers(text), text)))}
        for key, segments in found.items()
    }


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in _DIGITS.findall(text))


def _is_usable(name: str) -> bool:
    return 0 < len(name) <= _LONGEST_NAME and name.count(".") < _MOST_SEGMENTS


def pair_up(
    stored: Mapping[str, TensorSpec], live: Mapping[str, TensorSpec], known: Mapping[str, str]
) -> dict[str, str]:
    """Finds the tensors of ``stored`` and ``live`` that are the same under different names.

    Args:
        stored: the file's tensors by name.
        live: the object's tensors by name.
        known: stored name -> live name of those that need no renaming; they stay as they are.

    Returns:
        stored name -> live name of equal shapes, one to one, without the known ones.
    """
    search = _Search(Side(stored), Side(live), known)
    search.follow(_by_suffix(search.here, search.there))
    for counting in (True, False):
        search.follow(_by_signature(search.here, search.there, counting))
    search.follow(_by_container(search.here, search.there))
    search.follow(_in_order(search.here, search.there))
    return search.result()


class _Search:
    """What is paired so far, and how much of it rests on more than one module."""

    def __init__(self, here: Side, there: Side, known: Mapping[str, str]) -> None:
        self.here, self.there, self.known = here, there, known
        self.pairs: dict[str, str] = {}
        self.weak: set[str] = set()
        self.taken = set(known.values())
        self.tried: set[tuple[Segments, Segments]] = set()
        self.budget = _LANDINGS

    def follow(self, seeds: Iterable[tuple[Segments, Segments]]) -> None:
        """Tries the prefixes that the seeds speak for, those with most seeds first."""
        votes: Counter[tuple[Segments, Segments]] = Counter()
        for one, other in seeds:
            votes.update(_prefixes(one, other))
        for (one, other), _ in sorted(votes.items(), key=lambda item: (-item[1], -len(item[0][0]), item[0])):
            self._try(one, other)

    def _try(self, prefix: Segments, target: Segments) -> None:
        """Pairs what lies under the two prefixes, and then under their numbered siblings of the same rank."""
        if self.budget <= 0 or (prefix, target) in self.tried or opposed(prefix, target):
            return
        self.tried.add((prefix, target))
        mine, yours = self.here.ranks(prefix), self.there.ranks(target)
        comparable = (
            [(m, y) for m, y in zip(mine, yours, strict=True) if m[2] == y[2]] if len(mine) == len(yours) else []
        )
        if any(m[1] != y[1] for m, y in comparable) or not self._land(prefix, target):
            return
        for (place, *_), (spot, *_) in comparable[-1:]:
            siblings = zip(self.here.family(prefix, place), self.there.family(target, spot), strict=True)
            for one, other in siblings:
                both = (*prefix[:place], one, *prefix[place + 1 :]), (*target[:spot], other, *target[spot + 1 :])
                if both not in self.tried and self.budget > 0:
                    self.tried.add(both)
                    self._land(*both)

    def _land(self, prefix: Segments, target: Segments) -> bool:
        found, differ = {}, 0
        names = self.here.under.get(prefix, ())
        self.budget -= len(names)
        for name in names:
            other = self.there.named.get(target + self.here.spelled[name][len(prefix) :])
            if other is not None and self.here.shapes[name] == self.there.shapes[other]:
                found[name] = other
            elif other is not None:
                differ += 1
        if len(found) < max(differ, 1):
            return False
        fresh = {name: other for name, other in found.items() if self._is_free(name, other)}
        self.pairs.update(fresh)
        self.taken.update(fresh.values())
        smaller = min(len(names), len(self.there.under[target]))
        kinds = {self.here.shapes[name] for name in self.here.matrices(found)}
        if len(found) < _STRONG or len(kinds) < 2 or 2 * len(found) < smaller:
            self.weak.update(fresh)
        return True

    def _is_free(self, name: str, other: str) -> bool:
        return name not in self.known and name not in self.pairs and other not in self.taken

    def result(self) -> dict[str, str]:
        """The pairs, less those on weak evidence when little else agrees."""
        pairs = self.pairs
        agreed = self.here.matrices({*pairs, *self.known})
        least = min(len(self.here.matrices(self.here.shapes)), len(self.there.matrices(self.there.shapes)))
        if 2 * len(agreed) < least or len({self.here.shapes[name] for name in agreed}) < 2:
            pairs = {name: other for name, other in pairs.items() if name not in self.weak}
        if self.here.is_input_first != self.there.is_input_first:
            # A square matrix fits in either orientation, and means something else in the other one.
            square = {self.here.spelled[name][:-1] for name in pairs if _is_square(self.here.shapes[name])}
            pairs = {name: other for name, other in pairs.items() if self.here.spelled[name][:-1] not in square}
        return pairs


def _is_square(shape: Shape) -> bool:
    return len(shape) == 2 and shape[0] == shape[1]


def _prefixes(one: Segments, other: Segments) -> set[tuple[Segments, Segments]]:
    """The prefixes that a pair of names speaks for: before their common end, and after each number both have."""
    same = 0
    while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
        same += 1
    found = {(one[: len(one) - same], other[: len(other) - same])}
    ours = [place for place, segment in enumerate(one) if segment.isdecimal()]
    theirs = [place for place, segment in enumerate(other) if segment.isdecimal()]
    for mine, yours in zip(reversed(ours), reversed(theirs), strict=False):
        if one[mine] != other[yours]:
            break
        found.add((one[: mine + 1], other[: yours + 1]))
    return found


def _by_suffix(here: Side, there: Side) -> Iterator[tuple[Segments, Segments]]:
    """Names whose longest common end, of two segments or more, occurs once on each side with that shape."""
    ours, theirs = _suffixes(here), _suffixes(there)
    for name, segments in here.spelled.items():
        for start in range(len(segments) - 1):
            key = (segments[start:], here.shapes[name])
            if key in theirs:
                if len(ours[key]) == 1 and len(theirs[key]) == 1:
                    yield segments, theirs[key][0]
                break


def _suffixes(side: Side) -> dict[tuple[Segments, Shape], list[Segments]]:
    found: dict[tuple[Segments, Shape], list[Segments]] = defaultdict(list)
    for name, segments in side.spelled.items():
        for start in range(len(segments) - 1):
            found[segments[start:], side.shapes[name]].append(segments)
    return found


def _by_signature(here: Side, there: Side, counting: bool) -> Iterator[tuple[Segments, Segments]]:
    """Modules whose shapes, with as much of the end of their name as both share, occur once on each side.

    Args:
        here: the file's side.
        there: the object's side.
        counting: whether the numbered copies of a module (``layers.0.fc1``, ``layers.1.fc1``) are taken together.
    """
    ours, theirs = _units(here, counting), _units(there, counting)
    longest = max((len(pattern) for pattern in ours), default=0)
    settled: set[Segments] = set()
    for length in range(longest, -1, -1):
        left, right = _keyed(ours, here, length), _keyed(theirs, there, length)
        for key, patterns in left.items():
            others = right.get(key, [])
            if len(patterns) != 1 or len(others) != 1 or patterns[0] in settled:
                continue
            settled.add(patterns[0])
            if opposed(patterns[0], others[0]) or not (length or _is_distinctive(key[1])):
                continue
            one, other = ours[patterns[0]], theirs[others[0]]
            same = [(one[at], other[at]) for at in one if at in other]
            yield from _tensors(here, there, same)


def _units(side: Side, counting: bool) -> dict[Segments, dict[Segments, Segments]]:
    """Name with ``#`` for its counting numbers -> those numbers -> module."""
    counted: dict[Segments, set[str]] = defaultdict(set)
    mixed: dict[Segments, set[Signature]] = defaultdict(set)
    for module in side.modules if counting else ():
        for place, segment in enumerate(module):
            if segment.isdecimal():
                counted[module[:place]].add(segment)
        if module and module[-1].isdecimal():
            mixed[module[:-1]].add(side.signature(module))
    # The numbers of a Sequential of unlike modules are names.
    for prefix in [prefix for prefix, kinds in mixed.items() if len(kinds) > 1]:
        counted.pop(prefix, None)
    found: dict[Segments, dict[Segments, Segments]] = defaultdict(dict)
    for module in side.modules:
        places = [p for p, s in enumerate(module) if s.isdecimal() and len(counted.get(module[:p], ())) > 1]
        pattern = tuple("#" if place in places else segment for place, segment in enumerate(module))
        found[pattern][tuple(module[place] for place in places)] = module
    return found


_Key = tuple[Segments, tuple[Signature, Signature]]


def _keyed(
    units: Mapping[Segments, Mapping[Segments, Segments]], side: Side, length: int
) -> dict[_Key, list[Segments]]:
    """Units by the last ``length`` segments of their name and the shapes of their first and last module."""
    found: dict[_Key, list[Segments]] = defaultdict(list)
    for pattern, modules in units.items():
        if len(pattern) >= length:
            ends = list(modules.values())
            key = (pattern[len(pattern) - length :], (side.signature(ends[0]), side.signature(ends[-1])))
            found[key].append(pattern)
    return found


def _is_distinctive(ends: tuple[Signature, Signature]) -> bool:
    """Whether shapes alone may pair two modules."""
    return any(len(shape) >= 2 for _, shape in ends[0])


def _tensors(
    here: Side, there: Side, modules: Iterable[tuple[Segments, Segments]]
) -> Iterator[tuple[Segments, Segments]]:
    for one, other in modules:
        for leaf in here.modules[one]:
            if leaf in there.modules[other]:
                yield ((*one, leaf), (*other, leaf)) if leaf else (one, other)


def _by_container(here: Side, there: Side) -> Iterator[tuple[Segments, Segments]]:
    """Containers whose modules have, all together, shapes that no other container has."""
    ours, theirs = _containers(here), _containers(there)
    for kinds, found in ours.items():
        others = theirs.get(kinds, [])
        if len(found) == 1 and len(others) == 1 and len(kinds) > 1 and not opposed(found[0][0], others[0][0]):
            yield from _by_counting(here, there, found[0][1], others[0][1])


def _containers(side: Side) -> dict[frozenset[tuple[Signature, int]], list[tuple[Segments, list[Segments]]]]:
    inside: dict[Segments, list[Segments]] = defaultdict(list)
    for module in side.modules:
        for cut in range(len(module)):
            inside[module[:cut]].append(module)
    found: dict[frozenset[tuple[Signature, int]], list[tuple[Segments, list[Segments]]]] = defaultdict(list)
    for prefix, modules in inside.items():
        kinds = frozenset(Counter(map(side.signature, modules)).items())
        # A container that holds nothing but another one is the same container.
        if kinds not in found or found[kinds][-1][1] != modules:
            found[kinds].append((prefix, modules))
    return found


def _in_order(here: Side, there: Side) -> Iterator[tuple[Segments, Segments]]:
    """Modules from the first one on, as long as their shapes follow each other in the same way."""
    left, right = list(here.modules), list(there.modules)
    kinds, others = list(map(here.signature, left)), list(map(there.signature, right))
    same = 0
    while same < min(len(left), len(right)) and kinds[same] == others[same]:
        same += 1
    later = {*kinds[same:], *others[same:]}
    ours = [module for module, kind in zip(left[:same], kinds, strict=False) if kind not in later]
    theirs = [module for module, kind in zip(right[:same], kinds, strict=False) if kind not in later]
    if len(set(kinds[:same])) >= 3:
        yield from _by_counting(here, there, ours, theirs)


def _by_counting(
    here: Side, there: Side, ours: Iterable[Segments], theirs: Iterable[Segments]
) -> Iterator[tuple[Segments, Segments]]:
    """Modules of equal shapes, one to one; several of one shape only where both sides count them."""
    kinds, others = defaultdict(list), defaultdict(list)
    for module in ours:
        kinds[here.signature(module)].append(module)
    for module in theirs:
        others[there.signature(module)].append(module)
    for kind, modules in kinds.items():
        same = others.get(kind, [])
        if len(modules) == len(same) and (len(same) == 1 or (_counts_up(modules) and _counts_up(same))):
            pairs = list(zip(modules, same, strict=True))
            if not any(opposed(one, other) for one, other in pairs):
                yield from _tensors(here, there, pairs)


def _counts_up(modules: list[Segments]) -> bool:
    """Whether the names differ in their numbers alone, and these grow."""
    names = [".".join(module) for module in modules]
    numbers = [_numbers(name) for name in names]
    return len({_DIGITS.sub("#", name) for name in names}) == 1 and all(a < b for a, b in pairwise(numbers))
