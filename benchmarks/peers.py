"""Every way to save and restore that we are measured beside, and ours: small functions under one name.

A peer counts only where it is installed and gives back what it was given; otherwise the tables say why it is missing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from states import GPT2, Live

import holdfast

Flat = dict[str, torch.Tensor]


class Peer(NamedTuple):
    """One way.

    Attributes:
        file: what it writes or reads, inside the folder of the benchmark; several may read one file.
        save: the whole of a live state; None for those that only read.
        restore: the same back into it.
        save_flat: a dict of tensors.
        load_flat: the dict again, every tensor of it in memory.
        package: what must be installed, None for what torch, safetensors and we bring.
        rounds: how often it runs at most; None as often as asked for.
    """

    file: str
    save: Callable[[Live, Path], object] | None = None
    restore: Callable[[Live, Path], object] | None = None
    save_flat: Callable[[Flat, Path], object] | None = None
    load_flat: Callable[[Path], object] | None = None
    package: str | None = None
    rounds: int | None = None


# ---- torch -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _without_crc() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(True)


def _save_without_crc(value: Any, path: Path) -> None:
    with _without_crc():
        torch.save(value, path)


def _dcp_save(value: dict[str, Any], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(value, checkpoint_id=path, no_dist=True)


def _dcp_restore(live: Live, path: Path) -> None:
    tree = live.tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tree, checkpoint_id=path, no_dist=True)
    live.take_tree(tree)


# ---- packages that need not be there ---------------------------------------------------------------------------------


def _tensorizer_save(tensors: Flat, path: Path) -> None:
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(str(path))
    serializer.write_state_dict(tensors)
    serializer.close()


@contextlib.contextmanager
def _tensorizer(path: Path) -> Iterator[Any]:
    from tensorizer import TensorDeserializer

    with TensorDeserializer(str(path), device="cpu") as found:
        yield found


def _tensorizer_restore(live: Live, path: Path) -> None:
    with _tensorizer(path) as found:
        live.take(iter(found.items()))


def _tensorizer_load(path: Path) -> Flat:
    with _tensorizer(path) as found:
        return dict(found.items())


def _snapshot_state(live: Live) -> dict[str, Any]:
    """Its own dict of tensors: given the module itself, 0.1.0 fails on parameters that require gradients."""
    from torchsnapshot import StateDict

    return {"state": StateDict(**{name: value.detach() for name, value in live.flat.items()})}


def _snapshot_save(live: Live, path: Path) -> None:
    from torchsnapshot import Snapshot

    Snapshot.take(str(path), _snapshot_state(live))


def _snapshot_restore(live: Live, path: Path) -> None:
    from torchsnapshot import Snapshot

    state = _snapshot_state(live)
    Snapshot(str(path)).restore(state)
    live.take(iter(state["state"].items()))


def _fast_load(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from fastsafetensors import fastsafe_open

    with fastsafe_open([str(path)], device="cpu", nogds=True) as found:
        for name in found.keys():  # noqa: SIM118  (it is no dict)
            yield name, found.get_tensor(name)


def _streamed(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(str(path))
        yield from streamer.get_tensors()


# ---- all of them -----------------------------------------------------------------------------------------------------


def _save(value: Any, path: Path) -> None:
    holdfast.save(value, path, durable=False)  # as all the others


def _restore(live: Live, path: Path) -> None:
    holdfast.restore(path, **live.objects)


PEERS: dict[str, Peer] = {
    "torch": Peer(
        "torch.pt",
        save=lambda live, path: torch.save(live.tree, path),
        restore=lambda live, path: live.take_tree(torch.load(path)),
        save_flat=torch.save,
        load_flat=torch.load,
    ),
    "torch, crc off": Peer(
        "crc.pt", save=lambda live, path: _save_without_crc(live.tree, path), save_flat=_save_without_crc
    ),
    "torch, mmap": Peer("torch.pt", restore=lambda live, path: live.take_tree(torch.load(path, mmap=True))),
    "safetensors": Peer(
        "peer.safetensors",
        save=lambda live, path: save_file(live.flat, path),
        restore=lambda live, path: live.take(iter(load_file(path).items())),
        save_flat=save_file,
        load_flat=load_file,
    ),
    "ours .pt": Peer(
        "ours.pt",
        save=lambda live, path: _save(live.objects, path),
        restore=_restore,
        save_flat=_save,
        load_flat=holdfast.load,
    ),
    "ours .safetensors": Peer(
        "ours.safetensors",
        save=lambda live, path: _save(live.objects, path),
        restore=_restore,
        save_flat=_save,
        load_flat=holdfast.load,
    ),
    "ours, torch's .pt": Peer("torch.pt", restore=_restore, load_flat=holdfast.load),
    "DCP": Peer("dcp", save=lambda live, path: _dcp_save(live.tree, path), restore=_dcp_restore, rounds=2),
    "tensorizer": Peer(
        "peer.tensors",
        save=lambda live, path: _tensorizer_save(live.flat, path),
        restore=_tensorizer_restore,
        save_flat=_tensorizer_save,
        load_flat=_tensorizer_load,
        package="tensorizer",
        rounds=2,
    ),
    "torchsnapshot": Peer(
        "snapshot", save=_snapshot_save, restore=_snapshot_restore, package="torchsnapshot", rounds=2
    ),
    "fastsafetensors": Peer(
        "peer.safetensors",
        restore=lambda live, path: live.take(_fast_load(path)),
        load_flat=lambda path: {name: value.clone() for name, value in _fast_load(path)},
        package="fastsafetensors",
        rounds=2,
    ),
    "runai streamer": Peer(
        "peer.safetensors",
        restore=lambda live, path: live.take(_streamed(path)),
        load_flat=lambda path: {name: value.clone() for name, value in _streamed(path)},
        package="runai_model_streamer",
        rounds=2,
    ),
}
OURS = tuple(name for name in PEERS if name.startswith("ours"))


def usable() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that give back here what they were given, and why the others are left out."""
    missing = {}
    with tempfile.TemporaryDirectory() as name:
        folder, live = Path(name), Live(GPT2(1, 8, words=10))
        for key, peer in PEERS.items():
            if reason := _failure(peer, live, folder):
                missing[key] = reason
    return {name: peer for name, peer in PEERS.items() if name not in missing}, missing


def warm(names: Iterable[str]) -> None:
    """Runs peers once on a small state: what is loaded and started once is no memory of one save or restore."""
    with tempfile.TemporaryDirectory() as name:
        for key in names:
            _failure(PEERS[key], Live(GPT2(1, 8, words=10)), Path(name))


def _failure(peer: Peer, live: Live, folder: Path) -> str:
    """Why a peer can't be measured: it is not there, fails on this torch, or loses something."""
    if peer.package and not find_spec(peer.package):
        return "not installed"
    wanted = {name: value.clone() for name, value in live.flat.items()}
    try:
        if peer.save:
            peer.save(live, folder / peer.file)
        live.take((name, torch.zeros_like(value)) for name, value in wanted.items())
        if peer.restore:
            peer.restore(live, folder / peer.file)
            found = {name: value.clone() for name, value in live.flat.items()}
        else:
            found = wanted
    except Exception as error:  # whatever a package does on a torch that it does not know
        return f"fails here: {type(error).__name__}: {error}"[:80]
    finally:
        live.take(iter(wanted.items()))
    lost = [name for name, value in wanted.items() if not torch.equal(value, found[name])]
    return f"loses {len(lost)} tensors, {lost[0]} first" if lost else ""


def removed(path: Path) -> None:
    """A file or folder that is there no more."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
