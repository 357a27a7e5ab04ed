"""Real files, changed at random and opened with every verb: a program of its own, so that a crash is only its own.

``python -m tests.hostile.mutations SEED SECONDS FOLDER`` prints one JSON object and writes into ``FOLDER/phase`` what
it is doing. Every mutation follows from ``SEED`` and its number: the object names those that found something.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn

import holdfast
from holdfast.cli.main import Verbs
from holdfast.storage.digest import digest_bytes
from tests.formats import test_tar

GROWTH = 64 << 20
"""Bytes that a process may need more for a changed file of a few kilobytes than for an honest one."""
Random = random.Random
OWN = ".data/holdfast"


def tree() -> dict[str, Any]:
    """A bit of everything that torch itself reads with weights_only, too."""
    base = torch.arange(12.0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return {
        "model": net.state_dict(),
        "views": [base, base[3:7], base.reshape(3, 4).t(), base[0].expand(2, 3)],
        "half": torch.ones(3, dtype=torch.bfloat16),
        "eight": torch.ones(3).to(torch.float8_e4m3fn),
        "parameter": nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "conj": torch.tensor([1 + 2j]).conj(),
        "meta": torch.empty(2, 3, device="meta"),
        "quantized": torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.quint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "empty": torch.ones(0, 3),
        "plain": [1, -1, 2**40, 0.5, "text", b"bytes", None, True, (1, 2), 1j],
        "sorts": [{1, 2}, OrderedDict(a=1), Counter("aab"), torch.Size([1, 2]), torch.float16, torch.device("cpu")],
        "keys": {1: "a", (1, 2): "b", None: "c"},
    }


def made_by_torch(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def made_by_us(value: Any, form: str) -> bytes:
    stream = io.BytesIO()
    holdfast.save(value, stream, format=form, metadata=None if form == "torch-legacy" else {"note": "x"})
    return stream.getvalue()


def bases() -> dict[str, bytes]:
    """The honest files."""
    whole = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    streamed = {name: item for name, item in tree().items() if name not in ("nested", "eight")}
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.ones(0, 2)}
    return {
        "torch.pt": made_by_torch(tree()),
        "whole.pt": made_by_torch({"model": whole, "epoch": 3}),
        "ours.pt": made_by_us(tree(), "pt"),
        "torch-old.pt": made_by_torch(streamed, _use_new_zipfile_serialization=False),
        "ours-old.pt": made_by_us(streamed, "torch-legacy"),
        "tar.pt": test_tar.archived(test_tar.members()),
        "plain.safetensors": safetensors.torch.save(tensors, {"note": "x"}),
        "ours.safetensors": made_by_us(tree(), "safetensors"),
    }


# -- mutations of bytes


def numbers(rng: Random) -> int:
    """A number that is likely to hurt."""
    edge = 1 << rng.choice((7, 8, 15, 16, 31, 32, 62, 63, 64))
    return rng.choice((0, 1, -1, 2, 3, 7, 64, 255, edge, edge - 1, -edge, rng.randrange(1 << 20)))


def bent_bytes(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not changed:
            break
        at, length = rng.randrange(len(changed)), rng.choice((1, 1, 2, 4, 8, 64))
        what = rng.randrange(8)
        if what == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at] = rng.randrange(256)
        elif what == 2:
            del changed[at:]
        elif what == 3:
            del changed[at : at + length]
        elif what == 4:
            changed[at:at] = changed[at : at + length]
        elif what == 5:
            changed[at : at + length] = bytes(length)
        elif what == 6:
            changed[at:at] = rng.randbytes(length)
        else:
            code, size = rng.choice((("<H", 2), ("<I", 4), ("<Q", 8)))
            changed[at : at + size] = struct.pack(code, numbers(rng) % (1 << 8 * size))
    return bytes(changed)


# -- mutations of pickles, opcode by opcode


NAMES = [
    "torch FloatStorage", "torch QUInt4x2Storage", "torch.storage UntypedStorage", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter", "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_qtensor", "torch._utils _rebuild_nested_tensor", "torch._tensor _rebuild_from_type_v2",
    "torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_wrapper_subclass", "torch Tensor",
    "torch._utils _rebuild_device_tensor_from_cpu_tensor", "torch Size", "torch device", "torch float32",
    "torch.nested._internal.nested_tensor _rebuild_njt", "collections OrderedDict", "collections Counter",
    "collections defaultdict", "__builtin__ set", "__builtin__ bytearray", "__builtin__ complex", "_codecs encode",
    "os system", "torch.nn.modules.linear Linear", "torch.serialization _get_layout", "datetime datetime",
    "fractions Fraction", "numpy ndarray", "numpy.core.multiarray _reconstruct", "copyreg _reconstructor",
]  # fmt: skip
SIMPLE = [b"N", b"\x88", b"\x89", b")", b"]", b"}", b"(", b"0", b"1", b"2", b"t", b"R", b"b", b"a", b"e", b"s", b"u",
          b"\x85", b"\x86", b"\x87", b"Q", b"\x81", b"o", b"l", b"d", b".", b"\x8f", b"\x90", b"\x91",
          b"\x94"]  # fmt: skip


def pieces(data: bytes) -> list[bytes]:
    """The opcodes of a pickle, each with its argument."""
    starts = [position for _, _, position in pickletools.genops(data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def some_value(rng: Random) -> bytes:
    what = rng.randrange(7)
    if what == 0:
        return b"c" + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"
    if what == 1:
        return b"\x8a\x09" + (numbers(rng) % (1 << 70)).to_bytes(9, "little")
    if what == 2:
        return b"J" + struct.pack("<I", numbers(rng) % (1 << 32))
    if what == 3:
        text = rng.choice(("0", "1", "9", "cpu", "storage", "cuda:0", "x\x1b", "torch.strided", "_metadata")).encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if what == 4:
        return b"h" + bytes([rng.randrange(256)])
    if what == 5:
        return b"G" + struct.pack(">d", rng.choice((0.0, -0.0, 1e308, float("nan"), float("inf"), 0.5)))
    return rng.choice(SIMPLE)


def other_argument(piece: bytes, rng: Random) -> bytes:
    """The same opcode with another argument, where it has one."""
    op = piece[:1]
    if op in b"KqhU":
        return op + bytes([rng.randrange(256)]) + piece[2:]
    if op in b"MJrj":
        size = len(piece) - 1
        return op + (numbers(rng) % (1 << 8 * size)).to_bytes(size, "little")
    if op == b"c":
        return b"c" + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"
    return some_value(rng)


def bent_pickle(data: bytes, rng: Random) -> bytes:
    try:
        ops = pieces(data)
    except ValueError:
        return bent_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at, other = rng.randrange(len(ops)), rng.randrange(len(ops))
        what = rng.randrange(7)
        if what == 0:
            ops[at], ops[other] = ops[other], ops[at]
        elif what == 1:
            ops.insert(at, ops[other])
        elif what == 2 and len(ops) > 1:
            del ops[at]
        elif what == 3:
            ops.insert(at, some_value(rng))
        elif what == 4:
            first, last = sorted((at, other))
            ops[first:first] = ops[first : min(last, first + 40)] * rng.choice((1, 1, 2, 50))
        else:
            ops[at] = other_argument(ops[at], rng)
    return b"".join(ops)


# -- mutations of JSON


def bent_json(value: Any, rng: Random) -> Any:
    """The same with one value or key in it changed."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                stack.append(node[key])
    if not places:
        return other_json(rng, value)
    node, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        marks = [name for place, name in places if isinstance(place, dict) and name[:1] == "$"]
        node[rng.choice([*marks, "$tuple", "$tensor", "$opaque", "$subclass", "$jagged", "a"])] = node.pop(key)
    elif what == 2 and isinstance(node, list):
        node.insert(key, node[rng.randrange(len(node))])
    elif what == 3:
        place, other = rng.choice(places)
        node[key] = json.loads(json.dumps(place[other])) if other in place or isinstance(place, list) else 1
    else:
        node[key] = other_json(rng, node[key])
    return value


def other_json(rng: Random, value: Any) -> Any:
    if isinstance(value, int) and rng.randrange(2):
        return max(min(numbers(rng), 2**63), -(2**63))
    if isinstance(value, str) and rng.randrange(2):
        return rng.choice(("float32", "F32", "BF16", "I64", "quint4x2", "sparse_coo", "", "..", "a\x1b", value + "x"))
    return rng.choice((None, True, 0, -1, 2**40, 0.5, "", "x", [], {}, [0], [[1, 2]], {"$tensor": [0, "float32", [2]]}))


# -- mutations of containers


def records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: list[tuple[str, bytes]], rng: Random) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.randrange(8) == 0 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # the same name twice is a mutation
        for name, data in parts:
            archive.writestr(name, data)
    return buffer.getvalue()


def bent_zip(data: bytes, rng: Random) -> bytes:
    """A torch zip with true checksums around a pickle, a record of ours or a set of records that was changed."""
    parts = records(data)
    top = next(iter(parts)).partition("/")[0]
    own, pickled = f"{top}/{OWN}", f"{top}/data.pkl"
    what = rng.randrange(10)
    if what < 6:
        parts[pickled] = bent_pickle(parts[pickled], rng)
        if own in parts:
            parts[own] = sealed(parts[own], parts[pickled], lambda record: record)
            if rng.randrange(2):
                del parts[own]
    elif what < 8 and own in parts:
        parts[own] = sealed(parts[own], parts[pickled], lambda record: bent_record(record, rng))
    else:
        return zipped(bent_records(list(parts.items()), rng), rng)
    return zipped(list(parts.items()), rng)


def bent_record(record: dict[str, Any], rng: Random) -> dict[str, Any]:
    part = rng.choice(("tree", "tree", "tree", "objects", "lengths", "locations", "digests"))
    record[part] = bent_json(record[part], rng)
    return record


def sealed(data: bytes, pickled: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """A record of ours, changed, with true digests of itself and of the pickle."""
    record = change(msgspec.json.decode(data))
    record |= {"pickle": digest_bytes(pickled), "digest": ""}
    text = msgspec.json.encode(record)
    return text.replace(b'"digest":""}', b'"digest":"%b"}' % digest_bytes(text).encode())


def bent_records(parts: list[tuple[str, bytes]], rng: Random) -> list[tuple[str, bytes]]:
    at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    name, data = parts[at]
    what = rng.randrange(6)
    if what == 0:
        del parts[at]
    elif what == 1:
        parts.append((name, parts[other][1]))
    elif what == 2:
        parts[at], parts[other] = (name, parts[other][1]), (parts[other][0], data)
    elif what == 3:
        parts[at] = rng.choice((name.upper(), f"../{name}", f"/{name}", name + "\0", "x", name[:-1])), data
    elif what == 4:
        parts[at] = name, bent_bytes(data, rng)
    else:
        rng.shuffle(parts)
    return parts


def bent_stream(data: bytes, rng: Random) -> bytes:
    """A stream of torch < 1.6 with one of its five pickles changed."""
    at, cuts = 0, []
    for _ in range(5):
        end = at
        for _, _, position in pickletools.genops(data[at:]):
            end = at + position + 1
        cuts.append((at, end))
        at = end
    start, end = cuts[rng.choice((2, 3, 3, 3, 3, 3, 4))]
    return data[:start] + bent_pickle(data[start:end], rng) + data[end:]


def bent_tar(_: bytes, rng: Random) -> bytes:
    parts = test_tar.members()
    name = rng.choice(list(parts))
    bend = bent_pickle if name in ("pickle", "sys_info") else bent_bytes
    return test_tar.archived(parts | {name: bend(parts[name], rng)})


def bent_safetensors(data: bytes, rng: Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if rng.randrange(2):
        header.get("__metadata__", {}).pop("holdfast", None)
    text = json.dumps(bent_json(header, rng)).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


BENDS: dict[str, Callable[[bytes, Random], bytes]] = {
    "torch.pt": bent_zip,
    "whole.pt": bent_zip,
    "ours.pt": bent_zip,
    "torch-old.pt": bent_stream,
    "ours-old.pt": bent_stream,
    "tar.pt": bent_tar,
    "plain.safetensors": bent_safetensors,
    "ours.safetensors": bent_safetensors,
}


def mutated(honest: dict[str, bytes], seed: int) -> tuple[str, bytes]:
    """The file with the number ``seed``."""
    rng = Random(seed)
    name = rng.choice(list(honest))
    bend = bent_bytes if rng.randrange(5) == 0 else BENDS[name]
    return name, bend(honest[name], rng)


# -- what is done with each


def every_verb(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    file = str(path)

    def everything() -> None:
        with holdfast.open(file) as ckpt:
            for name in ckpt:
                ckpt[name].read()

    def command(*words: str) -> None:
        done = CliRunner().invoke(Verbs(), list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception

    yield "load", lambda: holdfast.load(file)
    yield "load opaque", lambda: holdfast.load(file, opaque=True)
    yield "open", everything
    yield "restore", lambda: holdfast.restore(file, model=nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    yield "verify", lambda: holdfast.verify(file)
    yield "scan", lambda: holdfast.scan(file)
    yield "rescue", lambda: holdfast.rescue(file)
    yield "convert", lambda: holdfast.convert(file, io.BytesIO(), format="safetensors")
    yield "convert back", lambda: holdfast.convert(file, io.BytesIO(), format="pt")
    yield "inspect", lambda: command("inspect", file)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two trees are equal to the last bit."""
    if isinstance(ours, torch.Tensor) or isinstance(theirs, torch.Tensor):
        return same_tensor(ours, theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(map(repr, ours)) == list(map(repr, theirs)) and all(
            same(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True)
        )
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, set | frozenset):  # NaN is in it and equals nothing
        return sorted(map(repr, ours)) == sorted(map(repr, theirs))
    if isinstance(ours, float | complex):
        return repr(ours) == repr(theirs)
    if isinstance(ours, torch.UntypedStorage | torch.storage.TypedStorage):
        return bool(ours.nbytes() == theirs.nbytes())
    return bool(ours == theirs)


def same_tensor(ours: Any, theirs: Any) -> bool:
    if type(ours) is not type(theirs) or ours.dtype != theirs.dtype or ours.layout != theirs.layout:
        return False
    if ours.is_nested != theirs.is_nested or ours.requires_grad != theirs.requires_grad:
        return False
    if ours.is_nested:
        return same(list(ours.detach().unbind()), list(theirs.detach().unbind()))
    if ours.shape != theirs.shape or ours.is_meta != theirs.is_meta:
        return False
    if ours.is_meta:
        return bool(ours.stride() == theirs.stride())
    if ours.layout is torch.sparse_coo:
        return same_tensor(ours._indices(), theirs._indices()) and same_tensor(ours._values(), theirs._values())
    if ours.layout is not torch.strided:
        return same_tensor(ours.values(), theirs.values())
    if ours.is_quantized:
        return torch.equal(ours.int_repr(), theirs.int_repr()) and ours.qscheme() == theirs.qscheme()
    left, right = (one.detach().resolve_conj().resolve_neg().contiguous() for one in (ours, theirs))
    flat = [one.as_strided((one.numel(),), (1,)).view(torch.uint8) for one in (left, right)]
    return torch.equal(*flat)


class Trial:
    """One run over many mutations.

    Args:
        folder: takes the file and the phase.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._phase = (folder / "phase").open("wb", buffering=0)
        self.bad: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def one(self, seed: int, name: str, data: bytes) -> None:
        path = self._folder / name
        path.write_bytes(data)
        loaded: Any = None
        taken = False
        for verb, call in every_verb(path):
            self._say(f"{seed} {verb}")
            begin = time.process_time()
            try:
                result = call()
            except holdfast.HoldfastError as reason:
                self.outcomes[type(reason).__name__] += 1
                if not str(reason).replace("\n", "").replace("\t", "").isprintable():
                    self.bad.append(f"{seed} {name} {verb}: prints {str(reason)!r}")
            except Exception as reason:  # the very thing that is looked for
                self.bad.append(f"{seed} {name} {verb}: {type(reason).__name__}: {str(reason)[:300]}")
            else:
                self.outcomes["accepted"] += 1
                if verb == "load":
                    loaded, taken = result, True
            if time.process_time() - begin > 3:
                self.bad.append(f"{seed} {name} {verb}: took {time.process_time() - begin:.1f} s")
        if taken:
            self._against_torch(seed, name, path, loaded)

    def _against_torch(self, seed: int, name: str, path: Path, ours: Any) -> None:
        self._say(f"{seed} torch")
        read = safetensors.torch.load_file if name.endswith("safetensors") else torch.load
        try:
            theirs, once_more = read(path), read(path)
        except Exception:  # torch and safetensors raise what they like
            return
        if name.startswith("ours") and name != "ours-old.pt" and not plain(path, name):
            return  # what our record says beyond torch's types; verify compares the two
        if name.endswith("safetensors") and set(ours) == set(theirs):
            theirs = {key: theirs[key] for key in ours}  # whose order is not that of the file
        self._say(f"{seed} compare")
        if not same(theirs, once_more):  # memory that torch never filled: the places that it worked out are wrong
            self.outcomes["torch differs from itself"] += 1
            return
        if not same(ours, theirs):
            self.bad.append(f"{seed} {name}: both read it, and differ: {ours!r:.200} against {theirs!r:.200}")
        self.outcomes["equal to torch"] += 1

    def close(self) -> None:
        self._phase.close()

    def _say(self, text: str) -> None:
        self._phase.seek(0)
        self._phase.write(text.ljust(80).encode())


def plain(path: Path, name: str) -> bool:
    """Whether a file has no record of ours."""
    data = path.read_bytes()
    return (b"holdfast" if name.endswith("safetensors") else OWN.encode()) not in data


def main(seed: int, seconds: float, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    honest = bases()
    trial = Trial(folder)
    for name, data in honest.items():  # warms up, and shows that what is not changed is taken
        trial.one(-1, name, data)
    accepted = trial.outcomes["accepted"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end and len(trial.bad) < 20:
        name, data = mutated(honest, seed + count)
        trial.one(seed + count, name, data)
        count += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    report = {"count": count, "bad": trial.bad, "outcomes": trial.outcomes, "honest": accepted, "grown": grown * 1024}
    print(json.dumps(report))


# -- from a test


def fuzzed(repository: Path, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """What a process of its own found. A crash in torch's reading, to which ours is compared, is not ours."""
    folders = [str(Path(holdfast.__file__).parents[1]), str(repository)]
    command = [sys.executable, "-X", "faulthandler", "-m", __name__, str(seed), str(seconds), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    phase = (folder / "phase").read_text().strip() if (folder / "phase").exists() else "the start"
    if done.returncode < 0 and phase.endswith("torch"):
        pytest.skip(f"torch itself died at mutation {phase}: {done.stderr[-300:]}")
    assert done.returncode == 0, f"died with {done.returncode} at mutation {phase}:\n{done.stderr[-3000:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def judge(report: dict[str, Any], enough: int) -> None:
    """Asserts that a search found nothing, and that it was one."""
    assert not report["bad"], "\n".join(report["bad"])
    assert report["grown"] < GROWTH, f"{report['grown']:,} bytes more than honest files need"
    assert report["honest"] >= 60, "honest files are taken by nearly every verb"
    assert report["count"] >= enough, "the machine is too slow for this to mean something"
    seen = {"CorruptFile", "RefusedFile", "UntrustedType", "MismatchError", "accepted", "equal to torch"}
    assert seen <= set(report["outcomes"]), report["outcomes"]


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
