from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ArgumentError, NotFound
from holdfast.runs.catalog import Listed, scan
from holdfast.runs.manifest import FileRecord
from holdfast.runs.moves import prune, quarantine, supersede
from holdfast.runs.retention import (
    Decision,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepSize,
    KeepWithin,
    Pinned,
    Rule,
    keep_text,
    kept_bytes,
    parse_amount,
    parse_keep,
    plan_prune,
    with_best,
)
from holdfast.runs.run_file import BestRule, parse_bests
from tests.runs.hand_made import NOON, commit, facts

GOLDEN = Path(__file__).parents[1] / "golden" / "retention"


def listed(row: dict[str, Any]) -> Listed:
    if row.get("damaged"):
        return Listed(row["step"], "", None, "is damaged")
    time = NOON - datetime.timedelta(hours=row.get("hours_ago", 0))
    metrics = {name: float(value) for name, value in row.get("metrics", {}).items()}
    files = {"model.safetensors": FileRecord(int(row.get("gb", 0) * 10**9), "xxh3-128:" + "0" * 32)}
    manifest = facts(row["step"], epoch=row.get("epoch"), time=time, metrics=metrics, files=files)
    return Listed(row["step"], "", manifest)


def decide(case: dict[str, Any]) -> list[list[Any]]:
    bests = parse_bests(case["best"]) if "best" in case else ()
    rules = with_best(parse_keep(case["keep"], best=bests), bests)
    found = plan_prune([listed(row) for row in case["checkpoints"]], rules, NOON, pins=case.get("pins"))
    return [[one.step, "keep" if one.keep else "delete", list(one.reasons)] for one in found]


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda file: file.stem)
def test_golden(file: Path) -> None:
    case = json.loads(file.read_text())
    assert decide(case) == case["decisions"]


def test_there_are_golden_files() -> None:
    assert len(list(GOLDEN.glob("*.json"))) >= 28


RULES = st.one_of(
    st.builds(KeepLast, st.integers(1, 5)),
    st.builds(KeepBest, st.just("loss"), st.sampled_from(["min", "max"]), st.integers(1, 5)),
    st.builds(KeepEvery, st.integers(1, 50)),
    st.builds(KeepWithin, st.integers(1, 10**6)),
    st.builds(KeepSize, st.integers(1, 10**11)),
    st.just(Pinned()),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "step": st.integers(0, 200),
            "damaged": st.booleans(),
            "metrics": st.fixed_dictionaries({"loss": st.floats()}),
            "hours_ago": st.integers(0, 500),
            "gb": st.integers(0, 20),
        }
    ),
    unique_by=lambda row: row["step"],
    max_size=20,
)


@given(st.lists(RULES, min_size=1, max_size=4), ROWS, st.lists(st.integers(0, 200), max_size=3))
def test_no_policy_deletes_the_newest_a_pin_or_what_is_not_known(
    rules: list[Rule], rows: list[dict[str, Any]], pinned: list[int]
) -> None:
    found = plan_prune([listed(row) for row in rows], rules, NOON, pins={str(step): step for step in pinned})
    kept = {one.step for one in found if one.keep}
    readable = [row["step"] for row in rows if not row["damaged"]]
    assert [one.step for one in found] == sorted(row["step"] for row in rows)
    assert not readable or max(readable) in kept
    assert {row["step"] for row in rows if row["damaged"] or row["step"] in pinned} <= kept
    assert all(one.reasons for one in found)


@given(st.lists(RULES, min_size=1, max_size=4), ROWS)
def test_pruning_twice_changes_nothing(rules: list[Rule], rows: list[dict[str, Any]]) -> None:
    first = plan_prune([listed(row) for row in rows], rules, NOON)
    left = [row for row in rows if {one.step: one.keep for one in first}[row["step"]]]
    assert all(one.keep for one in plan_prune([listed(row) for row in left], rules, NOON))


@given(ROWS, st.lists(RULES, max_size=3), st.integers(1, 10**11))
def test_a_budget_is_kept_or_was_past_before_it_was_asked(
    rows: list[dict[str, Any]], others: list[Rule], budget: int
) -> None:
    checkpoints = [listed(row) for row in rows]
    others = [rule for rule in others if not isinstance(rule, KeepSize)]
    without = plan_prune(checkpoints, [*others, Pinned()], NOON)
    found = plan_prune(checkpoints, [*others, KeepSize(budget)], NOON)
    must = {one.step for one in without if one.keep}
    assert must <= {one.step for one in found if one.keep}
    assert kept_bytes(checkpoints, found) <= max(budget, kept_bytes(checkpoints, without))
    filled = [one.step for one in found if one.keep and one.step not in must]
    gone = [one.step for one in found if not one.keep]
    assert not filled or not gone or min(filled) > max(gone)  # the newest of those that nothing else keeps


def test_parsing() -> None:
    loss = [BestRule("val_loss", "min")]
    assert parse_keep(" last:2  best:1 every:10ep pinned ", best=loss) == (
        KeepLast(2),
        KeepBest("val_loss", "min", 1),
        KeepEvery(epochs=10),
        Pinned(),
    )
    assert parse_keep("best:3:a:b:max every:1000step within:90min") == (
        KeepBest("a:b", "max", 3),
        KeepEvery(steps=1000),
        KeepWithin(5400),
    )
    assert parse_keep("best:2", best=parse_bests("val_loss:min acc:max")) == (
        KeepBest("val_loss", "min", 2),
        KeepBest("acc", "max", 2),
    )
    assert parse_keep("size:50GB size:3MiB") == (KeepSize(50 * 10**9), KeepSize(3 << 20))
    assert parse_amount("15min") == (15, "min")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "would delete everything"),
        ("   ", "would delete everything"),
        ("last", "'last' is no retention rule: last:2"),
        ("last:x", "is no retention rule"),
        ("last:-1", "is no retention rule"),
        ("last:0", r"KeepLast\(n=0\): a whole number of at least 1"),
        ("best:1", "needs to know what is best"),
        ("best:", "is no retention rule"),
        ("best:1:loss", "does not say which value is best"),
        ("every:10", "a number above 0 and a unit are wanted"),
        ("every:0ep", "a number above 0 and a unit are wanted"),
        ("every:10h", "is no retention rule"),
        ("within:10ep", "is no retention rule"),
        ("size:50", "'50': a whole number above 0 and a unit are wanted: 50GB; units: B, kB, MB"),
        ("size:50Gb", "a whole number above 0 and a unit are wanted"),
        ("size:0GB", "a whole number above 0 and a unit are wanted"),
        ("size:1.5TB", "a whole number above 0 and a unit are wanted"),
        ("lots", "'lots' is no retention rule"),
    ],
)
def test_rules_that_can_not_be_read(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_keep(text)


@pytest.mark.parametrize("arguments", [{}, {"steps": 1, "epochs": 1}, {"steps": 0}, {"epochs": -1}, {"epochs": True}])
def test_every_takes_one_of_two(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="KeepEvery"):
        KeepEvery(**arguments)


def test_best_needs_a_mode() -> None:
    with pytest.raises(ArgumentError, match="does not say which value is best"):
        KeepBest("loss", "lowest")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="a rule is one word, so its metric has no spaces"):
        KeepBest("val loss", "min")
    with pytest.raises(ArgumentError, match=r"KeepSize\(bytes=0\): a whole number of at least 1"):
        KeepSize(0)


def test_an_empty_policy_is_refused() -> None:
    with pytest.raises(ArgumentError, match="say at least 'last:1'"):
        plan_prune([listed({"step": 1})], [], NOON)


def test_prune_deletes_what_was_decided(root: Path) -> None:
    for step in range(1, 5):
        commit(root, step, {"epoch": step})
    catalog = scan(root)
    assert prune(catalog, plan_prune(catalog.checkpoints, parse_keep("last:2"), NOON)) == [1, 2]
    assert [one.step for one in scan(root).readable] == [3, 4]
    assert sorted(item.name for item in root.iterdir()) == ["step-00000003", "step-00000004"]


def test_prune_never_deletes_the_last_good_one(root: Path) -> None:
    commit(root, 1, {"epoch": 1})
    (root / "step-00000002").mkdir()
    everything = [Decision(1, False, ("a mistake",)), Decision(2, True, ("damaged",))]
    with pytest.raises(ArgumentError, match="would delete every checkpoint that can be read; nothing was deleted"):
        prune(scan(root), everything)
    assert len(scan(root).readable) == 1


def test_quarantine_keeps_the_step_out_of_sight_with_the_reason(root: Path) -> None:
    commit(root, 1, {"epoch": 1})
    commit(root, 2, {"epoch": 2})
    folder = Path(quarantine(root, 2, "a flipped bit"))
    assert json.loads((folder / "reason.json").read_text()) == {"step": 2, "reason": "a flipped bit"}
    assert [one.step for one in scan(root).checkpoints] == [1]
    assert scan(root).quarantined == ("step-00000002",)
    commit(root, 2, {"epoch": 2})
    quarantine(root, 2, "again")
    assert scan(root).quarantined == ("step-00000002", "step-00000002-2")
    with pytest.raises(NotFound, match="has no step-00000002"):
        quarantine(root, 2, "no more")


def test_supersede_moves_the_later_ones(root: Path) -> None:
    for step in (1, 2, 3, 4):
        commit(root, step, {"epoch": step})
    assert supersede(root, 2) == [4, 3]
    assert [one.step for one in scan(root).readable] == [1, 2]
    assert scan(root).superseded == ("step-00000003", "step-00000004")
    assert supersede(root, 2) == []


# ---- the text of rules -----------------------------------------------------------------------------------------------


@given(st.lists(RULES, min_size=1, max_size=4))
def test_rules_are_the_text_that_is_parsed(rules: list[Rule]) -> None:
    assert parse_keep(keep_text(rules)) == tuple(rules)


def test_the_best_is_kept_where_a_run_names_one() -> None:
    low, high = BestRule("loss", "min"), BestRule("acc", "max")
    assert with_best([KeepLast(1)], [low]) == (KeepLast(1), KeepBest("loss", "min"))
    assert with_best([KeepLast(1), KeepBest("loss", "max")], [low])[2:] == (KeepBest("loss", "min"),)
    assert with_best([KeepBest("loss", "min", 3)], [low]) == (KeepBest("loss", "min", 3),)
    assert with_best([KeepBest("loss", "min", 3)], [low, high])[1:] == (KeepBest("acc", "max"),)
    assert with_best([KeepLast(1)], ()) == (KeepLast(1),)
    assert with_best([], [low]) == ()


@pytest.mark.parametrize("both", [{}, {"steps": 10, "epochs": 1}])
def test_every_takes_steps_or_epochs(both: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match="KeepEvery takes steps= or epochs=, one of them"):
        KeepEvery(**both)
