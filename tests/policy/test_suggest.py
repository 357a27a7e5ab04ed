"""Two hundred pairs of name lists with known truth, and lies that must not be believed."""

from __future__ import annotations

from collections import Counter

import pytest

from holdfast.policy.names import align, policy_names
from holdfast.policy.policies import Warm
from holdfast.policy.suggest import Suggestion, suggest
from holdfast.spec import TensorSpec
from tests.policy.architectures import Named
from tests.policy.name_pairs import Pair, negative, positive


def specs(part: Named) -> dict[str, TensorSpec]:
    return {name: TensorSpec("float32", shape) for name, shape in part.shapes.items()}


def loaded(pair: Pair, suggestion: Suggestion | None) -> dict[str, str]:
    """Stored name -> live name of what loads."""
    names = policy_names(pair.stored.ids, Warm(rename=suggestion.rename if suggestion else {}))
    aligned = align(names.values(), pair.live.ids)
    found = {old: aligned[new] for old, new in names.items() if new in aligned}
    return {old: name for old, name in found.items() if pair.stored.shapes[old] == pair.live.shapes[name]}


def elements(part: Named, names: set[str]) -> int:
    return sum(TensorSpec("float32", part.shapes[name]).numel for name in names)


def judge(pair: Pair) -> tuple[str, float]:
    """``solved``, ``part`` or ``wrong``, and the share of the achievable coverage; only what a rename adds counts as
    wrong."""
    suggestion = suggest(specs(pair.stored), specs(pair.live))
    before, found, truth = loaded(pair, None), loaded(pair, suggestion), pair.truth
    possible = elements(pair.live, set(truth.values()))
    share = elements(pair.live, set(found.values())) / possible if possible else 1.0
    if any(truth.get(name) != live for name, live in found.items() if before.get(name) != live):
        return "wrong", share
    return ("solved" if share >= 0.95 else "part"), share


def test_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = positive()
    verdicts = {pair.name: judge(pair) for pair in pairs}
    count = Counter(verdict for verdict, _ in verdicts.values())
    with capsys.disabled():
        print(
            f"\nsuggest: {count['solved']} of {len(pairs)} pairs solved, {count['part']} in part, {count['wrong']} wrong"
        )
    assert len(verdicts) == len(pairs) >= 200
    assert count["wrong"] == 0
    assert count["solved"] >= 0.8 * len(pairs)


def test_nothing_wrong_is_proposed() -> None:
    pairs = negative()
    assert len(pairs) >= 40
    assert [pair.name for pair in pairs if judge(pair)[0] == "wrong"] == []
