"""Pickles that lie or attack: one generator a lie. Nothing runs, the error says what, and cost stays linear.

Each payload that would execute is run once by the real unpickler in a process of its own, so that a payload which has
gone stale can't pass for a defence.
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import CorruptFile, FormatError, RefusedFile, UntrustedType
from holdfast.formats.base import Segment
from holdfast.formats.nodes import Call, Global
from holdfast.formats.pickles import parse
from holdfast.formats.rebuild import build_tree
from holdfast.state.lifting import Lifting, lift
from holdfast.state.values import Opaque
from holdfast.storage.source import MemorySource

STORAGE = bytes(256)


def storage(key: str, location: str, length: int) -> Segment:
    """A container with one storage, ``0``, of 256 bytes."""
    if key != "0" or length != len(STORAGE):
        raise CorruptFile(f"`evil.pt`: no storage {key} of {length} bytes: corrupt", file="evil.pt")
    return Segment(MemorySource(STORAGE), 0, len(STORAGE), f"data/{key}")


def build(data: bytes) -> object:
    return build_tree(data, storage, "evil.pt")


# -- execution, by every opcode that can call


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


CALLS: dict[str, Callable[[str], bytes]] = {
    "REDUCE": lambda code: b"c__builtin__\nexec\n(" + text(code) + b"tR.",
    "REDUCE of protocol 0": lambda code: b"c__builtin__\nexec\n(V" + code.encode() + b"\ntR.",
    "STACK_GLOBAL": lambda code: b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93(" + text(code) + b"tR.",
    "INST": lambda code: b"(" + text(code) + b"i__builtin__\nexec\n.",
    "OBJ": lambda code: b"(c__builtin__\nexec\n" + text(code) + b"o.",
    "NEWOBJ": lambda code: b"\x80\x02" + EVIL_CLASS + b"(" + text(code) + b"t\x81.",
    "NEWOBJ_EX": lambda code: b"\x80\x04" + EVIL_CLASS + b"(" + text(code) + b"t}\x92.",
    "BUILD": lambda code: b"\x80\x02" + EVIL_CLASS + b")\x81(X\x04\x00\x00\x00codeX" + text(code)[1:] + b"db.",
    "nested in a dict": lambda code: b"}(" + text("model") + b"c__builtin__\nexec\n(" + text(code) + b"tRu.",
    "as a key": lambda code: b"}(c__builtin__\nexec\n(" + text(code) + b"tRNu.",
    "in a persistent id": lambda code: b"\x80\x02c__builtin__\nexec\n(" + text(code) + b"tRQ.",
    "as a tensor's storage": lambda code: (
        b"ctorch._utils\n_rebuild_tensor_v2\n(c__builtin__\nexec\n(" + text(code) + b"tRK\x00(t(t\x89N" + b"tR."
    ),
    "result of a call": lambda code: (
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n("
        + text("builtins")
        + b"tR"
        + text("exec")
        + b"tR("
        + text(code)
        + b"tR."
    ),
    "thrown away": lambda code: b"c__builtin__\nexec\n(" + text(code) + b"tR0N.",
    "memo only": lambda code: b"c__builtin__\nexec\n(" + text(code) + b"tRq\x000N.",
}
EVIL_CLASS = b"cevil_module\nEvil\n"
EVIL_MODULE = """
class Evil:
    def __new__(cls, code="", **_):
        exec(code)
        return object.__new__(cls)
    def __setstate__(self, state):
        exec(state["code"])
"""
LOADER = """
import pickle, sys
class Loader(pickle.Unpickler):
    def persistent_load(self, pid):
        return pid
try:
    Loader(open(sys.argv[1], "rb")).load()
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("route", CALLS)
def test_nothing_runs_by_any_opcode(route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "flag"
    (tmp_path / "evil_module.py").write_text(EVIL_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    data = CALLS[route](f"open({str(flag)!r}, 'w').close()")
    before = set(sys.modules)
    try:
        tree = build(data)
    except FormatError as refusal:
        tree = None
        text_of = str(refusal)
    else:
        text_of = repr(tree)
    assert not flag.exists()
    assert "evil_module" not in set(sys.modules) - before
    thrown_away = route in ("thrown away", "memo only", "in a persistent id", "as a tensor's storage")
    assert thrown_away or "exec" in text_of or "Evil" in text_of

    # the positive control: what the real unpickler does with the same bytes
    (tmp_path / "payload").write_bytes(data)
    (tmp_path / "loader.py").write_text(LOADER)
    subprocess.run([sys.executable, "loader.py", "payload"], cwd=tmp_path, check=True, capture_output=True)
    assert flag.exists(), "this payload is harmless: the test above proves nothing"


def test_what_would_run_is_named_and_refused_when_values_are_asked_for() -> None:
    tree = build(CALLS["nested in a dict"]("1"))
    assert tree == {"model": Opaque("builtins.exec", ["1"], None)}
    with pytest.raises(UntrustedType, match=r"builtins\.exec"):
        lift(tree, Lifting(leaf=lambda leaf: leaf, file="evil.pt"))


def test_every_name_is_listed_even_when_it_is_thrown_away() -> None:
    parsed = parse(CALLS["thrown away"]("1"), "evil.pt")
    assert parsed.globals == [Global("builtins", "exec", "builtins.exec")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x82\x01.", "extension registry"),
        (b"\x83\x01\x00.", "extension registry"),
        (b"\x84\x01\x00\x00\x00.", "extension registry"),
        (b"\x97.", "refers to an out-of-band buffer, which is not in the file"),
        (b"N\x98.", "out-of-band buffer"),
        (b"\x80\x06N.", "pickle protocol 6; 0 to 5 are known"),
        (b"Nb.", "at byte"),
        (b"}Nb.", "sets the state of something that has none"),
        (b"c__builtin__\nset\n)R}b}b.", "or twice"),
        (b"\x8b\x00\x00\x01\x00" + bytes(65536) + b".", "of the pickle: an integer of 65,536 bytes"),
    ],
)
def test_opcodes_that_reach_outside_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse(data, "evil.pt")
    assert "evil.pt" in str(caught.value)
    assert caught.value.file == "evil.pt"


# -- streams that no unpickler could run


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"\xff.",
        b"t.",
        b"(",
        b"R.",
        b"NR.",
        b"h\x00.",
        b"j\x00\x00\x00\x00.",
        b"g7\n.",
        b"gx\n.",
        b"q\x00.",
        b"X\xff\x00\x00\x00abc",
        b"X\xff\xff\xff\xff.",
        b"\x8e" + b"\xff" * 8 + b".",
        b"\x8c\x02\xff\xff.",
        b"Iabc\n.",
        b"I" + b"9" * 5000 + b"\n.",
        b"F1.2.3\n.",
        b"Snoquotes\n.",
        b"cno newline",
        b"c\xff\n\xff\n.",
        b"NN\x93.",
        b"}N(u.",
        b"}(Nu.",
        b"](Nu.",
        b"}(Ne.",
        b"N\x94Na.",
        b"(Nd.",
        b"(o.",
        b"\x8f(N\x90N\x90.",
        b"](N\x90.",
        b"\x86.",
        b"\x87.",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN.",
        b"G\x00\x00.",
        b"J\x00.",
        b"0.",
        b"2.",
    ],
)
def test_damaged_streams_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptFile, match=r"evil\.pt.*at byte [\d,]+ of the pickle: .*corrupt"):
        parse(data, "evil.pt")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"Snoquotes\n.", "ValueError a string without quotes"),
        (b"NN\x93.", "ValueError a name that is no string"),
        (b"N\x87.", "IndexError stack underflow"),
        (b"}(Ne.", "ValueError appends to what is no list"),
        (b"}(Nu.", "ValueError a key without a value"),
        (b"(Nd.", "ValueError a key without a value"),
        (b"](NNu.", "ValueError sets a key of what is no dict"),
        (b"](N\x90.", "ValueError adds to what is no set"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x0fN.", "IndexError a frame past the end"),
        (b"NR.", "no pickle goes on like this (IndexError"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptFile, match=r"`evil\.pt`: at byte [\d,]+ of the pickle") as caught:
        parse(data, "evil.pt")
    assert reason in str(caught.value)


def test_every_cut_of_an_honest_pickle_is_noticed() -> None:
    data = pickle.dumps({"a": [1, 2.5, "x" * 300, (1, 2), {3}], "b": b"bytes", "c": 2**70}, protocol=4)
    for length in range(len(data)):
        with pytest.raises(CorruptFile):
            parse(data[:length], "evil.pt")


def test_every_flipped_byte_gives_a_value_or_a_refusal() -> None:
    """No other exception than ours, whatever the damage."""
    data = bytearray(pickle.dumps({"a": [1, 2.5, "x", (1, 2), {3}], "b": b"bytes", "c": 2**70, "d": {4: None}}, 2))
    for index in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            data[index] ^= flip
            try:
                build(bytes(data))
            except FormatError as refusal:
                assert "evil.pt" in str(refusal)  # noqa: PT017 - most flips give a value
            data[index] ^= flip


# -- bombs


def nested(opener: bytes, depth: int, closer: bytes) -> bytes:
    return opener * depth + closer * depth + b"."


@pytest.mark.parametrize(
    "data",
    [
        nested(b"](", 100_000, b"e"),
        nested(b"(", 100_000, b"t"),
        b"N" + b"\x85" * 100_000 + b".",
        b"N" + b"\x85" * 100_000 + b"Q.",
        b"c__builtin__\nset\n" * 2000 + b")R" + b"\x85R" * 1999 + b".",
    ],
)
def test_depth_is_limited(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"the pickle is nested deeper than 500|storage"):
        build(data)


def test_a_shared_deep_part_counts_where_it_stands() -> None:
    deep = b"N" + b"\x85" * 300 + b"q\x00"
    data = b"(" + deep + b"h\x00" + b"\x85" * 300 + b"t."
    with pytest.raises(RefusedFile, match="nested deeper than 500"):
        build(data)
    build(b"(" + deep + b"h\x00" + b"\x85" * 100 + b"t.")


@pytest.mark.parametrize(
    "data",
    [
        b"]q\x00h\x00a.",
        b"}q\x00(X\x01\x00\x00\x00kh\x00u.",
        b"]q\x00(h\x00ta.",
        b"c__builtin__\nset\n)Rq\x00}(X\x01\x00\x00\x00kh\x00ub.",
        b"ccollections\nOrderedDict\n)Rq\x00(Nh\x00u.",
    ],
)
def test_a_value_that_contains_itself_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedFile, match="contains itself"):
        build(data)


def laughs(levels: int, width: int = 10) -> bytes:
    """Lists of ten times the same list, so many levels deep: ten to the power of ``levels`` values in a few bytes."""
    data = b"]q\x00"
    for level in range(levels):
        data += b"](" + b"h" + bytes([level])
        data += (b"h" + bytes([level])) * (width - 1) + b"eq" + bytes([level + 1])
    return data + b"."


def test_sharing_that_multiplies_is_refused_quickly() -> None:
    with pytest.raises(RefusedFile, match="refers to its own values so often"):
        build(laughs(100))
    assert build(laughs(3)) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"N" + b"2" * 1_000_000 + b".",
        b"(" * 1_000_000 + b".",
        b"]" * 300_000 + b".",
        b"}" * 300_000 + b".",
        b"(" + b"N" * 1_000_000 + b"l.",
        b"]q\x00" + b"h\x00" * 300_000 + b".",
        b"N" + b"".join(b"r" + struct.pack("<I", index) for index in range(100_000)) + b".",
    ],
)
def test_memory_is_linear_in_the_bytes(data: bytes) -> None:
    """At most two hundred bytes for each byte of the pickle: a constant, whatever the opcodes."""
    tracemalloc.start()
    try:
        parse(data, "evil.pt")
    except CorruptFile:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 200 * len(data) + 1_000_000


# -- numbers that lie


def tensor(
    *,
    cls: bytes = b"ctorch\nFloatStorage\n",
    key: bytes = b"X\x01\x00\x00\x000",
    location: bytes = b"X\x03\x00\x00\x00cpu",
    numel: bytes = b"K\x40",
    offset: bytes = b"K\x00",
    size: bytes = b"K\x40\x85",
    stride: bytes = b"K\x01\x85",
    grad: bytes = b"\x89",
    hooks: bytes = b"ccollections\nOrderedDict\n)R",
    more: bytes = b"",
    rebuild: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n",
) -> bytes:
    """A tensor of 64 floats in a storage of 256 bytes, in any part of which the caller may lie."""
    persistent = b"((X\x07\x00\x00\x00storage" + cls + key + location + numel + b"tQ"
    return rebuild + persistent + offset + size + stride + grad + hooks + more + b"tR"


def test_the_honest_tensor_is_accepted() -> None:
    leaf = build(tensor() + b".")
    assert leaf.spec.shape == (64,)  # type: ignore[attr-defined]
    assert leaf.segment.length == 256  # type: ignore[attr-defined]


def quantized(scheme: bytes) -> bytes:
    """A tensor of 64 bytes with a scheme of quantization."""
    rebuild, cls = b"ctorch._utils\n_rebuild_qtensor\n", b"ctorch\nQInt8Storage\n"
    return tensor(rebuild=rebuild, cls=cls, numel=b"M\x00\x01", grad=scheme + b"\x89")


LONG = b"\x8a\x09" + (2**64 + 1).to_bytes(9, "little")
HUGE = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"
LIES: dict[str, tuple[bytes, str]] = {
    "one element too many": (tensor(size=b"K\x41\x85"), "needs 260 bytes, the record has 256"),
    "an offset past the end": (tensor(offset=b"K\x01"), "needs 256 bytes, the record has 256"),
    "a negative offset": (tensor(offset=b"J\xff\xff\xff\xff"), "at byte -4"),
    "an offset that wraps": (tensor(offset=LONG), "the record has 256"),
    "an offset that is a float": (tensor(offset=b"G" + bytes(8)), "with offset 0.0"),
    "an offset that is a bool": (tensor(offset=b"\x88"), "offset True"),
    "a stride past the end": (tensor(stride=b"K\x02\x85"), "needs 508 bytes"),
    "a negative stride": (tensor(stride=b"J\xff\xff\xff\xff\x85"), "at least 0"),
    "a negative size": (tensor(size=b"J\xff\xff\xff\xff\x85"), "at least 0"),
    "a size that is a bool": (tensor(size=b"\x88\x85"), "at least 0"),
    "a size that is a float": (tensor(size=b"G\x3f\xf0" + bytes(6) + b"\x85"), "at least 0"),
    "a size that is a list": (tensor(size=b"]\x85"), "at least 0"),
    "sizes that are a list": (tensor(size=b"]K\x40a"), "sizes that are a list"),
    "a size that wraps": (tensor(size=LONG + LONG + b"\x86", stride=b"K\x00K\x00\x86"), "at least 0|64 bits"),
    "a product that wraps": (
        tensor(size=b"(" + b"J\x00\x00\x00\x40" * 3 + b"t", stride=b"(K\x00K\x00K\x00t"),
        "64 bits can count",
    ),
    "a size without end": (tensor(size=HUGE + b"\x85"), "at least 0"),
    "sizes without strides": (tensor(stride=b")"), "1 sizes but 0 strides"),
    "65 dimensions": (
        tensor(size=b"(" + b"K\x01" * 65 + b"t", stride=b"(" + b"K\x01" * 65 + b"t"),
        "a tensor of 65 dimensions; 64 is the most: corrupt",
    ),
    "a storage of another length": (tensor(numel=b"K\x3f"), "no storage 0 of 252 bytes"),
    "a storage of another dtype": (tensor(cls=b"ctorch\nDoubleStorage\n"), "no storage 0 of 512 bytes"),
    "a storage that is not there": (tensor(key=b"X\x01\x00\x00\x001"), "no storage 1"),
    "a storage of negative length": (tensor(numel=b"J\xff\xff\xff\xff"), "-1 elements"),
    "a storage of another class": (tensor(cls=b"cos\nsystem\n"), r"class os\.system"),
    "a storage of another module": (tensor(cls=b"cfoobar\nFloatStorage\n"), r"class foobar\.FloatStorage"),
    "a key that is a number": (tensor(key=b"K\x00"), "id is damaged"),
    "a key that is a list": (tensor(key=b"]"), "id is damaged"),
    "a location that is a number": (tensor(location=b"K\x00"), "id is damaged"),
    "requires_grad that is a number": (tensor(grad=b"K\x01"), "data/0: requires_grad is no bool"),
    "hooks": (tensor(hooks=b"ccollections\nOrderedDict\n)R(K\x00cos\nsystem\nu"), "carries hooks"),
    "hooks that are no dict": (tensor(hooks=b"cos\nsystem\n)R"), "no OrderedDict"),
    "an unknown property": (tensor(more=b"}(X\x01\x00\x00\x00x\x88u"), "unknown property"),
    "a property that is no bool": (tensor(more=b"}(X\x04\x00\x00\x00conjK\x01u"), "unknown property"),
    "properties that are a list": (tensor(more=b"]"), "a tensor whose properties are no dict"),
    "too few arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "takes 6 or 7 arguments"),
    "too many arguments": (tensor(more=b"NN"), "takes 6 or 7 arguments"),
    "no storage": (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR", "without a storage"),
    "an unknown dtype": (
        tensor(rebuild=b"ctorch._utils\n_rebuild_tensor_v3\n", more=b"ctorch\nfloat99\n"),
        r"has a dtype that is 'torch\.float99'",
    ),
    "a dtype of another module": (
        tensor(rebuild=b"ctorch._utils\n_rebuild_tensor_v3\n", more=b"cos\nfloat32\n"),
        r"'os\.float32'",
    ),
    "one storage under two dtypes": (
        b"(" + tensor() + tensor(cls=b"ctorch\nIntStorage\n") + b"t",
        "one of them is a lie",
    ),
    "one storage at two places": (
        b"(" + tensor() + tensor(location=b"X\x06\x00\x00\x00cuda:0") + b"t",
        "one of them is a lie",
    ),
    "arguments that are no tuple": (b"ctorch._utils\n_rebuild_tensor_v2\n]R", "6 or 7 arguments"),
    "a meta tensor of negative size": (
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\nJ\xff\xff\xff\xff\x85K\x01\x85\x89tR",
        "at least 0",
    ),
    "a meta tensor that wants a gradient of 1": (
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\nK\x01\x85K\x01\x85K\x01tR",
        "a meta tensor whose requires_grad is no bool",
    ),
    "a plain object of no class": (b"ccopy_reg\n_reconstructor\n(NNNtR", r"copyreg\._reconstructor without a class"),
    "too few arguments of the third form": (
        b"ctorch._utils\n_rebuild_tensor_v3\n)R",
        "_rebuild_tensor_v3 takes 7 or 8 arguments",
    ),
    "a call of a list": (b"c__builtin__\nset\n]R", "a call whose arguments are no tuple"),
    "a tensor of a subclass of nothing": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n)R",
        "_rebuild_from_type_v2 takes a function, a class, arguments and a state",
    ),
    "a tensor of torch 0.3 with three parts": (
        b"ctorch._utils\n_rebuild_tensor\n(K\x00))tR",
        r"torch\._utils\._rebuild_tensor takes 4 arguments and no state",
    ),
    "a scheme without its numbers": (
        quantized(b"(ctorch\nper_tensor_affine\nt"),
        "a quantized tensor of scheme 'per_tensor_affine' with 0 parameters",
    ),
    "a scale that is an integer": (
        quantized(b"(ctorch\nper_tensor_affine\nK\x01K\x00t"),
        "a quantized tensor whose scale is a int",
    ),
    "half bytes in columns": (
        tensor(
            rebuild=b"ctorch._utils\n_rebuild_qtensor\n",
            cls=b"ctorch\nQUInt4x2Storage\n",
            numel=b"M\x00\x01",
            size=b"K\x08K\x08\x86",
            stride=b"K\x01K\x08\x86",
            grad=b"(ctorch\nper_tensor_affine\nG" + bytes(8) + b"K\x00t\x89",
        ),
        "a quint4x2 tensor that is not row-major",
    ),
    "a quantized tensor that is not": (
        tensor(
            rebuild=b"ctorch._utils\n_rebuild_qtensor\n",
            grad=b"(ctorch\nper_tensor_affine\nG" + bytes(8) + b"K\x00t\x89",
        ),
        "not quantized",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_numbers_that_lie_are_corrupt(lie: str) -> None:
    data, message = LIES[lie]
    with pytest.raises(FormatError, match=message) as caught:
        build(data + b".")
    assert "`evil.pt`" in str(caught.value)
    assert len(str(caught.value)) < 1000


QINT = {"cls": b"ctorch\nQInt8Storage\n", "numel": b"M\x00\x01", "rebuild": b"ctorch._utils\n_rebuild_qtensor\n"}


@pytest.mark.parametrize(
    "scheme",
    [
        b")",
        b"]",
        b"(ctorch\nper_tensor_affine\nt",
        b"(ctorch\nper_tensor_affine\nK\x01K\x00t",
        b"(ctorch\nper_tensor_affine\nG" + bytes(8) + b"Nt",
        b"(ctorch\nper_channel_affine\nNNK\x00t",
        b"(cos\nsystem\nG" + bytes(8) + b"K\x00t",
    ],
)
def test_quantizers_that_lie_are_corrupt(scheme: bytes) -> None:
    with pytest.raises(CorruptFile, match="quantized tensor"):
        build(tensor(**QINT, grad=scheme + b"\x89") + b".")  # type: ignore[arg-type]


def test_values_that_lie_about_themselves_stay_opaque() -> None:
    """A class that is known, called as it never calls itself, is not rebuilt: it is named, and load refuses it."""
    for call in (
        b"ccollections\nCounter\nK\x05\x85R",
        b"ccollections\ndeque\n(]X\x01\x00\x00\x00xtR",
        b"c__builtin__\nset\nK\x05\x85R",
        b"cdatetime\ndatetime\nC\x0a" + b"\xff" * 10 + b"\x85R",
        b"cdatetime\ndate\nC\x02ab\x85R",
        b"cfractions\nFraction\nX\x03\x00\x00\x001/0\x85R",
        b"cdecimal\nDecimal\nX\x01\x00\x00\x00x\x85R",
        b"cpathlib\nPosixPath\nK\x05\x85R",
        b"ctorch\nSize\n(X\x01\x00\x00\x00xt\x85R",
        b"ctorch\ndevice\nK\x05\x85R",
        b"ctorch._utils\n_rebuild_parameter\n(NNNtR",
        b"ctorch._utils\n_rebuild_sparse_tensor\n(NNtR",
        b"cnumpy.core.multiarray\nscalar\n(NNtR",
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tR",
        b"cargparse\nNamespace\n)\x81]b",
        b"c__builtin__\nrange\n(K\x00K\x01K\x00tR",
    ):
        tree = build(call + b".")
        assert type(tree) is Opaque, call


def test_names_from_the_file_can_not_move_the_cursor() -> None:
    with pytest.raises(CorruptFile) as caught:
        build(tensor(cls=b"ctorch\n\x1b[31m\xe2\x80\xaeStorage\n") + b".")
    assert str(caught.value).isprintable()


def test_calls_keep_everything_that_they_were_given() -> None:
    root = parse(b"\x80\x04cm\nC\n(K\x01t}(X\x01\x00\x00\x00kK\x02u\x92(K\x03e(K\x04K\x05uK\x06b.", "evil.pt").root
    assert type(root) is Call
    assert (root.args, root.kwargs.flat, root.items, root.flat, root.state) == ((1,), ["k", 2], [3], [4, 5], 6)
