from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.numpy

from holdfast.errors import ArgumentError, CorruptFile, NotFound, RefusedFile, StorageError, UnsupportedValue
from holdfast.formats.base import Document, StoredTensor
from holdfast.runs import writing
from holdfast.runs.catalog import scan
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.manifest import encode
from holdfast.runs.writing import write_checkpoint
from holdfast.spec import TensorSpec
from holdfast.state.values import Typed
from holdfast.storage.atomic import StagedFolder
from tests.runs.hand_made import commit, facts, flip, read, segment, small_tree, tensor


def test_round_trip_with_tied_weights_and_typed_keys(root: Path) -> None:
    tree = small_tree(5)
    with open_checkpoint(commit(root, 5, tree, metrics={"loss": 0.5}, objects={"model": {"kind": "module"}})) as back:
        document = back.document()
        assert back.format == "run-checkpoint"
        assert back.manifest.step == 5
        assert back.manifest.metrics == {"loss": 0.5}
        assert document.objects == {"model": {"kind": "module"}}
        assert document.metadata == {"note": "hand made"}
        model = document.tree["model"]
        assert list(model) == ["embed.weight", "head.weight", "head.bias"]
        assert model["embed.weight"].segment is model["head.weight"].segment
        assert model["embed.weight"].segment is not model["head.bias"].segment
        for name in model:
            assert read(model[name]) == read(tree["model"][name])
        ((key, moments),) = document.tree["optimizer"]["state"].payload
        assert key == 0
        assert moments["step"].spec == TensorSpec("float32", ())
        assert read(moments["exp_avg"]) == read(tree["optimizer"]["state"].payload[0][1]["exp_avg"])
        assert document.tree["args"].kind == "namespace"
        assert document.tree["args"].payload["name"] == "résumé"


def test_each_container_is_plain_safetensors_with_the_keys_of_the_object(root: Path) -> None:
    folder = commit(root, 1)
    plain = safetensors.numpy.load_file(folder / "model.safetensors")
    assert sorted(plain) == ["embed.weight", "head.bias"]
    with safetensors.safe_open(folder / "optimizer.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert sorted(opened.keys()) == ["state.0.exp_avg", "state.0.step"]
    assert sorted(item.name for item in folder.iterdir()) == [
        "entries.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def test_views_of_one_memory_stay_views(root: Path) -> None:
    data = segment(bytes(range(64)))
    whole = StoredTensor(TensorSpec("float32", (4, 4)), data)
    column = StoredTensor(TensorSpec("float32", (4,), (4,)), data, offset=8)
    with open_checkpoint(commit(root, 1, {"model": {"column": column, "whole": whole}})) as back:
        model = back.document().tree["model"]
        assert model["column"].segment is model["whole"].segment
        assert (model["column"].offset, model["column"].spec.stride) == (8, (4,))
        assert read(model["whole"]) == bytes(range(64))
        assert len(back.segments()) == 1


def test_views_that_no_tensor_covers_share_stored_bytes(root: Path) -> None:
    data = segment(bytes(range(64)))
    left = StoredTensor(TensorSpec("float32", (4, 3), (4, 1)), data)
    right = StoredTensor(TensorSpec("float32", (4, 3), (4, 1)), data, offset=4)
    tree = {"model": {"left": left, "right": right, "alone": tensor(2)}}
    with open_checkpoint(commit(root, 1, tree)) as back:
        model = back.document().tree["model"]
        assert set(model) == {"left", "right", "alone"}
        assert model["left"].segment is model["right"].segment
        assert (model["left"].offset, model["right"].offset) == (0, 4)
        assert model["left"].spec.stride == (4, 1)
        assert model["left"].segment.source.read(model["left"].segment.offset, 64) == bytes(range(64))


def test_what_two_objects_share_is_stored_once(root: Path) -> None:
    weight = tensor(8)
    tree = {"model": {"w": weight}, "ema": {"w": StoredTensor(weight.spec, weight.segment)}}
    folder = commit(root, 1, tree)
    assert not (folder / "ema.safetensors").exists()
    with open_checkpoint(folder) as back:
        found = back.document().tree
        assert found["model"]["w"].segment is found["ema"]["w"].segment


def test_what_safetensors_lacks_and_what_json_lacks(root: Path) -> None:
    tree = {
        "model": {
            "complex": tensor(3, dtype="complex128"),
            "__metadata__": tensor(2),
            "a": {"b": tensor(1, fill=7)},
            "a.b": tensor(1, fill=9),
            "bad \ud800 name": tensor(5),
            "live": StoredTensor(TensorSpec("float32", (2, 3)), segment(bytes(24)), 0, True, (1, 2)),
            "empty": tensor(0, 3),
        },
        "G": tensor(2),
        "g": {"x": tensor(3)},
        "odd": Typed("dict", [[2**70, tensor(1)], ["2", tensor(2)], [2, tensor(3)], [True, tensor(4)], [1, tensor(5)]]),
    }
    folder = commit(root, 1, tree)
    assert {"G.safetensors", "g-2.safetensors"} <= {item.name for item in folder.iterdir()}
    with open_checkpoint(folder) as back:
        found = back.document().tree
        assert found["model"]["complex"].spec == TensorSpec("complex128", (3,))
        assert read(found["model"]["complex"]) == read(tree["model"]["complex"])
        assert read(found["model"]["a"]["b"]) == read(tree["model"]["a"]["b"])
        assert read(found["model"]["a.b"]) == read(tree["model"]["a.b"])
        assert read(found["model"]["__metadata__"]) == read(tree["model"]["__metadata__"])
        assert found["model"]["bad \ud800 name"].spec.shape == (5,)
        assert found["model"]["live"].live_stride == (1, 2)
        assert found["model"]["live"].requires_grad
        assert found["model"]["empty"].spec.shape == (0, 3)
        assert found["G"].spec.shape == (2,)
        sizes = [item.spec.shape for _, item in found["odd"].payload]
        assert sizes == [(1,), (2,), (3,), (4,), (5,)]


def test_a_tree_without_tensors_and_a_tree_that_is_no_dict(root: Path) -> None:
    with open_checkpoint(commit(root, 1, {"epoch": 3})) as back:
        assert back.document().tree == {"epoch": 3}
        assert back.segments() == []
    with open_checkpoint(commit(root, 2, [tensor(2)])) as back:
        assert back.document().tree[0].spec.shape == (2,)
    with open_checkpoint(commit(root, 3, tensor(4))) as back:
        assert back.document().tree.spec.shape == (4,)


def test_nothing_is_visible_when_writing_fails(root: Path) -> None:
    document = Document({"model": {"w": tensor(2)}, "strange": object()})
    with (
        pytest.raises(ArgumentError, match="`strange`: object is neither a plain value nor a stored tensor"),
        StagedFolder(root, "step-00000001") as folder,
    ):
        write_checkpoint(folder, document, facts(1))
    assert list(root.iterdir()) == []


def test_a_step_that_exists_is_not_overwritten(root: Path) -> None:
    commit(root, 1)
    with pytest.raises(StorageError, match="exists already"):
        commit(root, 1)


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such checkpoint folder"):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(NotFound, match=r"has no manifest\.json"):
        open_checkpoint(tmp_path)


def test_every_flipped_byte_outside_tensors_is_noticed_on_reading(root: Path) -> None:
    folder = commit(root, 1)
    for name in ("entries.json", "state.json", "manifest.json"):
        file = folder / name
        good = file.read_bytes()
        for at in range(0, len(good) - 3, 7):
            flip(file, at, at % 8)
            with pytest.raises((CorruptFile, RefusedFile)), open_checkpoint(folder) as back:
                back.document()
            file.write_bytes(good)


def test_a_file_cut_short_or_missing(root: Path) -> None:
    folder = commit(root, 1)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-5])
    with pytest.raises(
        CorruptFile, match=r"model.safetensors`: has 251 bytes, the manifest says 256: cut short"
    ) as caught:
        open_checkpoint(folder)
    assert caught.value.offset == 251
    file.write_bytes(data + b"x")
    with pytest.raises(CorruptFile, match="it grew"):
        open_checkpoint(folder)
    file.unlink()
    with pytest.raises(NotFound, match="missing from the checkpoint"):
        open_checkpoint(folder)


def test_a_container_that_is_a_link_to_elsewhere(root: Path, tmp_path: Path) -> None:
    folder = commit(root, 1)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedFile, match="link out of its folder"):
        open_checkpoint(folder)


def test_a_manifest_that_lists_no_entries(root: Path) -> None:
    folder = commit(root, 1)
    (folder / "manifest.json").write_bytes(encode(facts(1)))
    with pytest.raises(CorruptFile, match=r"its manifest does not list entries\.json"):
        open_checkpoint(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(NotFound, match=r"has no manifest\.json: it is no committed checkpoint"):
        open_checkpoint(folder)


def test_state_that_points_past_the_entries(root: Path) -> None:
    from holdfast.runs.entries import decode_state

    for reference in (99, -1, "0", True, None, [0]):
        data = json.dumps({"version": 0, "tree": {"w": {"$tensor": reference}}}).encode()
        with pytest.raises(CorruptFile, match="is none of the 3 in entries"):
            decode_state(data, lambda index: index, 3, "state.json")
    for broken in (b"[]", b'{"version": "0", "tree": 1}', b'{"version": 0}'):
        with pytest.raises(CorruptFile, match="no state of a checkpoint"):
            decode_state(broken, lambda index: index, 3, "state.json")


@pytest.mark.parametrize("name", ["entries.json", "state.json", "manifest.json"])
def test_what_no_reader_would_take_is_not_committed(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writing.LIMITS, name, 10)
    with pytest.raises(UnsupportedValue, match=rf"{name} would have .* bytes, and 10 are read at most: there are too"):
        commit(root, 1)
    assert scan(root).checkpoints == ()
