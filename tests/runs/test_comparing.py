"""Two sides against each other, without torch and without a file."""

from __future__ import annotations

from pathlib import Path

from holdfast.formats.base import Document, StoredTensor
from holdfast.runs.comparing import Contents, compare, contents, opened, to_measure
from holdfast.state.values import Typed
from tests.runs.hand_made import commit, small_tree, tensor


def side(tree: object, name: str = "side", **metadata: str) -> Contents:
    return contents(Document(tree, {}, metadata), name)


def test_the_same_tree_is_identical_and_nothing_is_to_be_measured() -> None:
    left, right = side(small_tree(), "a"), side(small_tree(), "b")
    diff = compare(left, right)
    assert diff.identical
    assert (diff.a, diff.b) == ("a", "b")
    assert len(diff.same) == 5
    assert to_measure(diff, left, right) == []


def test_what_changed_can_be_measured_by_both_sides() -> None:
    left = side({"model": {"w": tensor(2, 2), "b": tensor(2)}})
    right = side({"model": {"module.w": tensor(2, 2, fill=9), "module.b": tensor(2)}})
    diff = compare(left, right)
    ((name, ours, theirs),) = to_measure(diff, left, right)
    assert name == "model.w"
    assert (ours, theirs) == (left.stored["model.w"], right.stored["model.module.w"])
    assert diff.same == ["model.b"]


def test_moved_tensors_are_found_by_what_is_in_them_each_once() -> None:
    left = side({"a": tensor(3, fill=1), "b": tensor(3, fill=2), "c": tensor(3, fill=2), "d": tensor(4)})
    right = side(
        {"x": tensor(3, fill=2), "y": tensor(3, fill=1), "z": tensor(3, fill=5), "w": tensor(4, dtype="int32")}
    )
    diff = compare(left, right)
    assert [(one.name, one.other) for one in diff.renamed] == [("a", "y"), ("b", "x")]
    assert [one.name for one in diff.removed] == ["c", "d"]
    assert [one.name for one in diff.added] == ["z", "w"]


def test_tied_weights_that_are_untied_are_the_same_and_one_that_lacks_is_explained() -> None:
    embed = tensor(4, 3)
    tied = {"embed": embed, "head": StoredTensor(embed.spec, embed.segment)}
    assert compare(side(tied), side({"embed": tensor(4, 3), "head": tensor(4, 3)})).identical
    diff = compare(side(tied), side({"embed": tensor(4, 3)}))
    assert diff.notes == ["`head` of A shares the memory of `embed`"]


def test_what_manifests_record_is_compared_between_checkpoints(tmp_path: Path) -> None:
    first = commit(tmp_path, 1, small_tree(1), metrics={"loss": 0.5}, environment={"torch": "2.6"})
    second = commit(tmp_path, 2, small_tree(1), metrics={"loss": 0.25}, environment={"torch": "2.7"})
    with opened(first) as left, opened(str(second)) as right:
        diff = compare(left, right)
    assert [(one.name, one.left, one.right) for one in diff.values] == [
        ("environment.torch", "'2.6'", "'2.7'"),
        ("metrics.loss", "0.5", "0.25"),
        ("position.step", "1", "2"),
    ]
    assert len(diff.same) == 5
    with opened(first) as left, opened(first / "model.safetensors") as right:
        assert "only A records metrics" in compare(left, right).notes


def test_checkpoints_are_compared_by_their_digests_alone(tmp_path: Path) -> None:
    """Bytes that were damaged since are for verify to find."""
    first, second = commit(tmp_path, 1, small_tree(1)), commit(tmp_path, 2, small_tree(1))
    file = second / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(damaged)
    with opened(first) as left, opened(second) as right:
        assert not compare(left, right, "model.*").changed
    (tmp_path / "alone.safetensors").write_bytes(damaged)
    with opened(first) as left, opened(tmp_path / "alone.safetensors") as right:
        assert compare(left, right, "model.*").changed


def test_an_index_s_own_count_is_no_metadata(tmp_path: Path) -> None:
    first = commit(tmp_path, 1, small_tree(1))
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"metadata": {"total_size": 7, "by": "me"}, "weight_map": {}}'
    )
    assert first.is_dir()
    with opened(tmp_path / "model.safetensors.index.json") as one:
        assert one.side.facts == {"metadata": {"by": ("'me'", "'me'")}}


def test_keys_that_print_the_same_stay_apart_under_short_names() -> None:
    tree = {"d": Typed("dict", [[0, 1], ["0", 2], [True, 3], ["True", 4]])}
    assert list(side(tree).side.values) == ["d.0", "d.0'2", "d.True", "d.True'2"]

    def split(count: int) -> dict[str, object]:
        """Every way to nest k.k.k: each is another path, and all print the same."""
        below = {".".join("k" * first): split(count - first) for first in range(1, count)}
        return {**below, ".".join("k" * count): count}

    names = list(side(split(11)).side.values)
    assert len(set(names)) == len(names) == 1024
    assert max(map(len, names)) == len("k.k.k.k.k.k.k.k.k.k.k'1024")


def test_bytes_of_plain_values_are_compared_too() -> None:
    left, right = side({"blob": b"\x00" * 500 + b"a"}), side({"blob": b"\x00" * 500 + b"b"})
    (change,) = compare(left, right).values
    assert change.name == "blob"
