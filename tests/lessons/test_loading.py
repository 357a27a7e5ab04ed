"""What goes wrong when checkpoints are loaded, one lesson a test: first what torch alone does, then holdfast.

Lesson 23 is tested as far as a machine without an accelerator shows it.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

import holdfast
from holdfast.cli.main import main
from holdfast.distributed import HoldfastReader, HoldfastWriter
from holdfast.errors import (
    CorruptFile,
    FormatError,
    MismatchError,
    RefusedFile,
    UntrustedType,
)

Net = Callable[..., nn.Sequential]
Same = Callable[[Any, Any], bool]


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_lesson_19_a_refused_load_changes_nothing(net: Net, same: Same, tmp_path: Path) -> None:
    """``load_state_dict`` that raises for one shape has already overwritten everything else."""
    torch.save(net(1, outputs=5).state_dict(), tmp_path / "f.pt")
    theirs, ours = net(2), net(2)
    before = copy_of(ours)
    with pytest.raises(RuntimeError, match="size mismatch"):
        theirs.load_state_dict(torch.load(tmp_path / "f.pt"))
    assert not same(theirs, before)
    with pytest.raises(MismatchError, match="nothing was changed"):
        holdfast.restore(tmp_path / "f.pt", model=ours)
    assert same(ours, before)


def test_lesson_20_a_load_that_matches_nothing_is_an_error(net: Net, same: Same, tmp_path: Path) -> None:
    """``strict=False`` loads nothing without a word when every name has another prefix."""
    torch.save({f"encoder.{name}": value for name, value in net(1).state_dict().items()}, tmp_path / "f.pt")
    live = net(2)
    before = copy_of(live)
    live.load_state_dict(torch.load(tmp_path / "f.pt"), strict=False)
    assert same(live, before)
    with pytest.raises(MismatchError, match=r"no name of the file .*Try holdfast.Warm\(rename=") as refused:
        holdfast.restore(tmp_path / "f.pt", model=live, match=holdfast.Warm())
    assert len(getattr(refused.value.report, "unexpected", ())) == len(before)
    holdfast.restore(tmp_path / "f.pt", model=live, match=holdfast.Warm(strip_prefix="encoder"))
    assert same(live, net(1))


def test_lesson_20_other_shapes_are_left_out_and_named(net: Net, tmp_path: Path) -> None:
    """``strict=False`` still raises on shapes, so people write a loop that hides what it skips."""
    torch.save(net(1, outputs=5).state_dict(), tmp_path / "f.pt")
    with pytest.raises(RuntimeError, match="size mismatch"):
        net(2).load_state_dict(torch.load(tmp_path / "f.pt"), strict=False)
    live = net(2)
    report = holdfast.restore(tmp_path / "f.pt", model=live, match=holdfast.Warm())
    assert [str(one) for one in report.mismatched] == [
        "`model.3.weight`: file has (5, 4) float32, object wants (2, 4) float32",
        "`model.3.bias`: file has (5,) float32, object wants (2,) float32",
    ]
    assert torch.equal(live[0].weight, net(1)[0].weight)
    assert torch.equal(live[3].weight, net(2)[3].weight)


class Named(nn.Module):
    """Names that contain a wrapper's, and a child that has one for its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.submodule = nn.Linear(2, 2)
        self.inner = nn.ModuleDict({"module": nn.Linear(2, 2)})


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DataParallel of compiled": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPED)
def test_lesson_21_wrappers_are_taken_off_by_segment(wrap: str, same: Same, tmp_path: Path) -> None:
    """``replace("module.", "")`` makes ``sub`` of ``submodule.``; and wrappers come in either order."""
    model = Named(1)
    state = WRAPPED[wrap](model).state_dict()
    by_hand = {name.replace("module.", "").replace("_orig_mod.", "") for name in state}
    assert "subweight" in by_hand
    torch.save(state, tmp_path / "wrapped.pt")
    bare = Named(2)
    assert holdfast.restore(tmp_path / "wrapped.pt", model=bare).is_exact
    assert same(bare, model)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    inner = Named(2)
    assert holdfast.restore(tmp_path / "bare.pt", model=WRAPPED[wrap](inner)).is_exact
    assert same(inner, model)


@pytest.mark.parametrize(
    ("value", "dtype", "warm"),
    [
        (torch.tensor([70_000.0, 1.0]), torch.float16, r"1 values of its float32 are too large for float16"),
        (torch.tensor([1 + 2j, 3 + 0j]), torch.float32, r"complex64"),
        (torch.tensor([0.5, 1.5]), torch.int64, r"float32"),
    ],
    ids=["infinite", "imaginary", "fractions"],
)
def test_lesson_22_no_value_is_lost_in_silence(
    value: torch.Tensor, dtype: torch.dtype, warm: str, tmp_path: Path
) -> None:
    """Into a narrower dtype, large numbers become infinite, imaginary parts vanish, fractions are cut off."""

    def holder() -> nn.Module:
        module = nn.Module()
        module.register_buffer("x", torch.zeros(2, dtype=dtype))
        return module

    torch.save({"x": value}, tmp_path / "f.pt")
    theirs = holder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.load_state_dict({"x": value})
    assert not torch.equal(theirs.state_dict()["x"].to(value.dtype), value)
    for policy, words in ((holdfast.Exact(), "`x`: file has"), (holdfast.Warm(), warm)):
        live = holder()
        with pytest.raises(MismatchError, match=words):
            holdfast.restore(tmp_path / "f.pt", model=live, match=policy)
        assert not live.state_dict()["x"].any()


def from_gpu(tree: Any, file: Path) -> None:
    """Writes ``tree`` as a machine with a GPU does: its tensors say that they lived on ``cuda:0``."""
    torch.save(tree, file)
    with zipfile.ZipFile(file) as archive:
        parts = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts:
            if name.endswith("data.pkl"):
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            archive.writestr(name, data)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what a machine without a GPU does")
def test_lesson_23_every_tensor_goes_where_the_live_one_is(net: Net, same: Same, tmp_path: Path) -> None:
    """Files remember ``cuda:0``: each process loads its copy there, and a machine without one loads nothing."""
    from_gpu({"model": net(1).state_dict(), "rng": torch.get_rng_state()}, tmp_path / "f.pt")
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(tmp_path / "f.pt")
    live = net(2)
    places = {name: value.data_ptr() for name, value in live.state_dict().items()}
    holdfast.restore(tmp_path / "f.pt", model=live)
    assert same(live, net(1))
    assert {name: value.data_ptr() for name, value in live.state_dict().items()} == places  # no second copy
    tree = holdfast.load(tmp_path / "f.pt")
    torch.set_rng_state(tree["rng"])
    assert {value.device.type for value in tree["model"].values()} == {"cpu"}


def flip(file: Path, needle: bytes) -> None:
    """Flips one bit of the value that ``needle`` is the bytes of."""
    data = bytearray(file.read_bytes())
    data[data.index(needle) + 1] ^= 4
    file.write_bytes(data)


alone = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
MARKED = torch.full((8,), 1234.5)


@alone
@pytest.mark.parametrize("kind", ["torch", "safetensors", "dcp"])
def test_lesson_24_a_flipped_bit_is_seen(kind: str, tmp_path: Path) -> None:
    """torch.load, safetensors and torch.distributed.checkpoint load damaged bytes without a word."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    needle = MARKED.numpy().tobytes()
    if kind == "dcp":
        dcp.save({"x": MARKED}, checkpoint_id=theirs)
        flip(next(theirs.glob("*.distcp")), needle)
        read = {"x": torch.zeros(8)}
        dcp.load(read, checkpoint_id=theirs)
        with pytest.raises(CorruptFile, match=r"`?x`?"):
            holdfast.load(theirs)
    else:
        save = torch.save if kind == "torch" else safetensors.torch.save_file
        load = torch.load if kind == "torch" else safetensors.torch.load_file
        holdfast.save({"x": MARKED}, ours, format="pt" if kind == "torch" else "safetensors")
        for file in (ours, theirs):
            if file is theirs:
                save({"x": MARKED}, file)
            flip(file, needle)
        read = load(theirs)
        live = nn.Module()
        live.register_buffer("x", torch.zeros(8))
        for attempt in (lambda: holdfast.load(ours), lambda: holdfast.restore(ours, model=live)):
            with pytest.raises(CorruptFile, match=r"`x`"):
                attempt()
        assert not live.state_dict()["x"].any()
        assert holdfast.verify(ours).status == "CORRUPT"
    assert not torch.equal(read["x"], MARKED)


def test_lesson_25_a_whole_module_whose_class_moved(tmp_path: Path, same: Same) -> None:
    """A pickled module is lost when its class moves; ``weights_only=False`` is no cure, and it runs the file's code."""
    moved = types.ModuleType("old_place_of_net")
    exec(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
        "        self.fc = nn.Linear(width, 1)\n",
        moved.__dict__,
    )
    sys.modules["old_place_of_net"] = moved
    net = moved.Net(3)
    torch.save(net, tmp_path / "whole.pt")
    del sys.modules["old_place_of_net"]
    with pytest.raises(ModuleNotFoundError):
        torch.load(tmp_path / "whole.pt", weights_only=False)
    with pytest.raises(UntrustedType, match=r"old_place_of_net.Net"):
        holdfast.load(tmp_path / "whole.pt")
    assert same(holdfast.rescue(tmp_path / "whole.pt"), net)
    live = moved.Net(3)
    nn.init.zeros_(live.fc.weight)
    holdfast.restore(tmp_path / "whole.pt", model=live)
    assert same(live, net)


def test_lesson_25_the_constructors_arguments_are_in_the_file(tmp_path: Path, same: Same) -> None:
    """A state_dict does not say how wide the model was; a recorded config does, and no class is ever imported."""

    @holdfast.record_config
    class Net(nn.Sequential):
        def __init__(self, width: int) -> None:
            super().__init__(nn.Linear(width, 1))

    net = Net(7)
    holdfast.save(net, tmp_path / "net.pt")
    assert same(holdfast.build(tmp_path / "net.pt", factory=Net), net)


of_quantization = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TypedStorage:UserWarning")


@pytest.fixture
def dynamic_int8(net: Net) -> Callable[[int], nn.Module]:
    """dynamic_int8(seed) makes the small model with packed int8 weights."""

    def make(seed: int) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: nn.Module = torch.ao.quantization.quantize_dynamic(net(seed).eval(), {nn.Linear}, dtype=torch.qint8)
        return made

    return make


@of_quantization
def test_lesson_26_quantized_weights_do_not_pass_for_loaded(
    dynamic_int8: Callable[[int], nn.Module], net: Net, same: Same, tmp_path: Path
) -> None:
    """Into a float model with ``strict=False``, quantized weights load nothing and raise nothing."""
    quantized = dynamic_int8(1)
    torch.save(quantized.state_dict(), tmp_path / "q.pt")
    theirs = net(2)
    theirs.load_state_dict(quantized.state_dict(), strict=False)
    assert torch.equal(theirs[0].weight, net(2)[0].weight)
    live = net(2)
    before = copy_of(live)
    for policy in (holdfast.Exact(), holdfast.Warm()):
        with pytest.raises(MismatchError, match=r"`0.weight`") as refused:
            holdfast.restore(tmp_path / "q.pt", model=live, match=policy)
        assert {"0.weight", "3.weight"} <= set(getattr(refused.value.report, "missing", ()))
        assert same(live, before)


@of_quantization
def test_lesson_26_packed_parameters_are_not_dropped_by_safetensors(
    dynamic_int8: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    """A loop that keeps "the tensors" of a quantized state_dict writes a file without its weights."""
    quantized = dynamic_int8(1)
    tensors = {name: value for name, value in quantized.state_dict().items() if isinstance(value, torch.Tensor)}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors")
    assert not any("packed" in name for name in safetensors.torch.load_file(tmp_path / "theirs.safetensors"))
    holdfast.save(quantized, tmp_path / "ours.safetensors")
    assert set(holdfast.load(tmp_path / "ours.safetensors")) == set(quantized.state_dict())
    other = dynamic_int8(2)
    question = torch.linspace(-1, 1, 6).reshape(2, 3)
    assert not torch.equal(other(question), quantized(question))
    holdfast.restore(tmp_path / "ours.safetensors", model=other)
    assert torch.equal(other(question), quantized(question))


def test_lesson_27_the_mode_is_set_or_said(net: Net, tmp_path: Path) -> None:
    """A model that predicts in train mode drops activations and forgets its averages; one that trains in eval too."""
    holdfast.save({"model": net(1)}, tmp_path / "f.pt")
    live = net(2)
    (said,) = [note for note in holdfast.restore(tmp_path / "f.pt", model=live).notes if "mode" in note]
    assert said == "`model` is left in train mode; call eval() or give mode='eval' before predicting"
    holdfast.restore(tmp_path / "f.pt", model=live, mode="eval")
    assert not any(module.training for module in live.modules())
    assert not holdfast.build(tmp_path / "f.pt", factory=net).training
    holdfast.restore(tmp_path / "f.pt", model=live, mode="train")
    assert all(module.training for module in live.modules())


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@alone
def test_lesson_28_a_planted_metadata_file_does_not_run(tmp_path: Path) -> None:
    """torch itself unpickles ``.metadata`` of a distributed checkpoint: a planted one runs code."""
    dcp.save({"x": torch.ones(2)}, checkpoint_id=tmp_path / "ckpt")
    (tmp_path / "ckpt" / ".metadata").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(dcp.api.CheckpointException, match="metadata"):  # after it has run it
        dcp.load({"x": torch.zeros(2)}, checkpoint_id=tmp_path / "ckpt")
    assert (tmp_path / "ran").is_dir()
    (tmp_path / "ran").rmdir()
    with pytest.raises(FormatError):
        holdfast.load(tmp_path / "ckpt")
    assert not (tmp_path / "ran").exists()


def test_lesson_28_planted_sample_inputs_of_a_pt2_do_not_run(tmp_path: Path) -> None:
    """A ``.pt2`` archive holds its sample inputs as a pickle, which nobody needs to read for the weights."""
    net = nn.Linear(2, 1)
    torch.export.save(torch.export.export(net, (torch.ones(1, 2),)), tmp_path / "good.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad:
        for entry in good.infolist():
            sample = "sample_inputs" in entry.filename
            bad.writestr(entry.filename, pickle.dumps(Planted(tmp_path / "ran")) if sample else good.read(entry))
    assert torch.equal(holdfast.load(tmp_path / "bad.pt2")["weight"], net.weight)
    assert not (tmp_path / "ran").exists()


def test_lesson_29_an_index_stays_in_its_folder(net: Net, tmp_path: Path) -> None:
    """Entries of an index are joined to its folder: ``../`` and links lead out of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "secret.safetensors")
    (folder / "link").symlink_to(tmp_path)
    for shard in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "link/secret.safetensors"):
        index = {"metadata": {"total_size": 8}, "weight_map": {"x": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(RefusedFile, match=r"secret"):
            holdfast.load(folder)


def test_lesson_29_names_can_not_drive_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tensor may be called like an escape sequence, or like text that runs from right to left."""
    name = "fc\x1b[2J\x1b]0;owned\x07\u202egnp.exe"
    safetensors.torch.save_file({name: torch.ones(2)}, tmp_path / "f.safetensors")
    assert set(holdfast.load(tmp_path / "f.safetensors")) == {name}
    with pytest.raises(MismatchError) as refused:
        holdfast.restore(tmp_path / "f.safetensors", model=nn.Linear(2, 1))
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "f.safetensors")])
    summary = str(holdfast.summary(tmp_path / "f.safetensors"))
    for text in (str(refused.value), str(refused.value.report), capsys.readouterr().out, summary):
        assert r"\x1b[2J" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


# -- 30


@pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled:UserWarning", "ignore:Detected an existing:UserWarning"
)
def test_lesson_30_a_save_that_fails_into_the_same_folder_leaves_what_was_there(tmp_path: Path) -> None:
    """The old data are gone before the new metadata exist: what is then loaded is neither of the two."""

    def failing(writer: type) -> Any:
        class Failing(writer):  # type: ignore[misc]
            def finish(self, **_: Any) -> None:
                raise OSError("the machine stops here")

        return Failing

    def saved(value: float, writer: Any) -> None:
        dcp.save({"w": torch.full((4,), value)}, storage_writer=writer, no_dist=True)

    def loaded(reader: Any) -> Any:
        into = {"w": torch.zeros(4)}
        dcp.load(into, storage_reader=reader, no_dist=True)
        return into["w"].tolist()

    saved(1.0, dcp.FileSystemWriter(tmp_path / "theirs"))
    with pytest.raises(CheckpointException):
        saved(2.0, failing(dcp.FileSystemWriter)(tmp_path / "theirs"))
    assert loaded(dcp.FileSystemReader(tmp_path / "theirs")) == [2.0] * 4, "the first one is lost"
    saved(1.0, HoldfastWriter(tmp_path / "ours"))
    with pytest.raises(CheckpointException):
        saved(2.0, failing(HoldfastWriter)(tmp_path / "ours"))
    assert loaded(HoldfastReader(tmp_path / "ours")) == [1.0] * 4
    assert holdfast.verify(tmp_path / "ours").status == "OK"
