from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import importlib
import io
import math
import pathlib
import sys
import types
import zoneinfo
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdfast
from holdfast.errors import CorruptFile, MismatchError, RefusedFile, UnsupportedValue, UntrustedType
from holdfast.state.lifting import Lifting, lift, trusted_class
from holdfast.state.lowering import Lowering, lower
from holdfast.state.values import SAVE_DEPTH, Opaque, Record, Typed

FORMATS = ["pt", "safetensors"]


def there_and_back(value: Any, form: str = "pt", **how: Any) -> Any:
    stream = io.BytesIO()
    holdfast.save(value, stream, format=form)
    stream.seek(0)
    return holdfast.load(stream, **how)


def same(left: Any, right: Any) -> bool:
    """Equal with types, NaN equal to NaN, signs of zeros told apart."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, dict):
        pairs = zip(left.items(), right.items(), strict=False)
        return len(left) == len(right) and all(same(a, b) and same(x, y) for (a, x), (b, y) in pairs)
    if isinstance(left, list | tuple | collections.deque):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, argparse.Namespace):
        return same(vars(left), vars(right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, np.generic):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    return bool(left == right)


UTC = datetime.UTC
VALUES: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 2**63 - 1, 2**63, -(2**64), 10**60],
    "floats": [0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308],
    "complex": [1 + 2j, complex(-0.0, math.nan)],
    "strings": ["", "ü😀", "\0\x1b[2J", "\ud800", "$tensor"],
    "bytes": [b"", bytes(range(256)), bytearray(b"ab")],
    "dollar_keys": {"$tensor": 1, "b": {"$x": 2}, "\udfff": 3},
    "one_dollar_key": {"$float": "nan"},
    "odd_keys": {1: "a", None: "b", (1, "x"): "c", 2.5: "d", b"k": "e", frozenset({1}): 0},
    "text_and_number_keys": {"1": "text", 1: "number"},
    "tuples": ((), (1,), ((1, 2), [3, (4,)])),
    "sets": [set(), {1, "a", (1, 2)}, frozenset({1.5})],
    "deque": [collections.deque([1, [2, 3], [4, 5]], maxlen=4), collections.deque()],
    "ordered": collections.OrderedDict([("b", 1), ("a", [2]), (3, 4)]),
    "defaultdict": [collections.defaultdict(list, {"a": [1], 2: []}), collections.defaultdict(None, {"x": 1})],
    "counter": collections.Counter("abracadabra"),
    "namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1]), self_=None),
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:\\x")],
    "times": [
        datetime.datetime(2024, 2, 29, 1, 2, 3, 456),  # noqa: DTZ001
        datetime.datetime(2024, 1, 1, tzinfo=UTC),
        datetime.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
        datetime.date(1, 1, 1),
        datetime.time(23, 59, 59, 999999),
        datetime.timedelta(days=-3, microseconds=1),
    ],
    "numbers": [fractions.Fraction(-3, 7), decimal.Decimal("1.10"), decimal.Decimal("NaN").is_nan()],
    "slices": [slice(1, None, 2), range(0, 10, 3), ...],
    "torch": [torch.Size([2, 3]), torch.float8_e4m3fn, torch.device("cpu"), torch.device("cuda", 1)],
    "torch_names": [torch.strided, torch.sparse_csr, torch.channels_last, torch.per_tensor_affine],
    "numpy_scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1j), np.str_("ab"), np.bytes_(b"c")],
    "numpy_odd": [np.str_(""), np.datetime64("2020-01-01"), np.timedelta64(3, "s"), np.float16(-0.0), np.longdouble(1)],
    "numpy_dtypes": [np.dtype("f4"), np.dtype(">i2"), np.dtype("<M8[ns]")],
    "arrays": [np.arange(6.0).reshape(2, 3), np.zeros((0, 3), np.uint16), np.array(True), np.array(["a", "bcd"])],
    "arrays_odd": [np.arange(6)[::-1], np.arange(4, dtype=">i4"), np.array(["2020"], "M8[D]"), np.float32([1, 2])],
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", VALUES)
def test_a_plain_value_comes_back_with_its_type(name: str, form: str) -> None:
    loaded = there_and_back({"v": VALUES[name]}, form)["v"]
    assert same(loaded, VALUES[name]), loaded


def test_maxlen_and_factory_come_back() -> None:
    loaded = there_and_back([collections.deque([1, 2], maxlen=2), collections.defaultdict(list)])
    loaded[0].append(3)
    loaded[1]["new"].append(1)
    assert list(loaded[0]) == [2, 3]
    assert loaded[1] == {"new": [1]}


def test_an_array_that_was_loaded_can_be_written_to() -> None:
    frozen = np.arange(3)
    frozen.flags.writeable = False
    for loaded in there_and_back([frozen, np.arange(3.0), np.array(["a"])]):
        loaded[0] = loaded[1 if loaded.size > 1 else 0]
        assert loaded.flags.writeable
    transposed = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert there_and_back(transposed).strides == transposed.strides


@pytest.mark.parametrize("name", VALUES)
def test_plain_torch_reads_it_as_the_nearest_plain_type(name: str) -> None:
    stream = io.BytesIO()
    holdfast.save({"before": 1, "v": VALUES[name], "after": torch.ones(2)}, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=True)
    assert loaded["before"] == 1
    assert torch.equal(loaded["after"], torch.ones(2))


def test_what_plain_torch_sees() -> None:
    stream = io.BytesIO()
    holdfast.save(
        {
            "namespace": argparse.Namespace(lr=0.1),
            "path": pathlib.Path("a/b"),
            "scalar": np.float32(1.5),
            "array": np.arange(3),
            "deque": collections.deque([1, 2]),
            "date": datetime.date(2024, 1, 2),
            "range": range(3),
            "counter": collections.Counter("aab"),
            "defaultdict": collections.defaultdict(list, {"a": [1]}),
        },
        stream,
    )
    stream.seek(0)
    loaded = torch.load(stream, weights_only=True)
    assert torch.equal(loaded.pop("array"), torch.arange(3))
    assert loaded == {
        "namespace": {"lr": 0.1},
        "path": "a/b",
        "scalar": 1.5,
        "deque": [1, 2],
        "date": "2024-01-02",
        "range": [0, 3, 1],
        "counter": {"a": 2, "b": 1},
        "defaultdict": {"a": [1]},
    }


atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(codec=None), max_size=6)
    | st.binary(max_size=6)
    | st.fractions()
    | st.dates()
    | st.timedeltas()
    | st.datetimes()
    | st.builds(pathlib.PurePosixPath, st.text("ab/.", min_size=1, max_size=5))
)
hashable = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
trees = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(collections.deque)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["$int", "$", "items"]), inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4).map(collections.OrderedDict)
        | st.dictionaries(hashable, inner, max_size=4).map(lambda items: collections.defaultdict(int, items))
        | st.dictionaries(st.sampled_from("abc"), inner).map(lambda items: argparse.Namespace(**items))
        | st.sets(hashable, max_size=3)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees)
def test_any_nesting_comes_back(form: str, tree: Any) -> None:
    stream = io.BytesIO()
    holdfast.save(tree, stream, format=form)
    stream.seek(0)
    assert same(holdfast.load(stream), tree)
    if form == "pt":
        stream.seek(0)
        torch.load(stream, weights_only=True)


# -- classes of one's own


class Color(enum.Enum):
    RED = "r"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Config:
    width: int
    layers: list[int] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self.made += 1


@dataclass(frozen=True, slots=True)
class Frozen:
    a: Any


class Point(NamedTuple):
    x: int
    y: Any


HERE = __name__
OWN = [Color.RED, Level.LOW, Config(3, [1, 2]), Frozen({"t": (1, 2)}), Point(1, [2])]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, types.ModuleType(HERE))
    for cls in (Color, Level, Config, Frozen, Point):
        setattr(sys.modules[HERE], cls.__name__, cls)


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", OWN, ids=lambda value: type(value).__name__)
def test_own_classes_come_back_when_trusted(value: Any, form: str) -> None:
    loaded = there_and_back({"v": value}, form, trusted={name_of(type(value))})["v"]
    assert type(loaded) is type(value)
    assert loaded == value


def test_a_trusted_dataclass_is_made_as_copy_makes_it() -> None:
    assert there_and_back(Config(3), trusted={name_of(Config)}).made == 1, "__post_init__ ran again"


@pytest.mark.parametrize("value", OWN, ids=lambda value: type(value).__name__)
def test_own_classes_are_records_otherwise_and_save_again(value: Any) -> None:
    record = there_and_back({"v": value})["v"]
    assert type(record) is Record
    assert record.type_name == name_of(type(value))
    again = there_and_back([record])[0]
    assert again == record
    assert there_and_back(record, trusted={name_of(type(value))}) == value


def test_a_record_shows_its_fields() -> None:
    record = there_and_back(Config(3, [1]))
    assert (record.width, record.layers) == (3, [1])
    assert record.fields == {"width": 3, "layers": [1], "made": 1}
    assert repr(record) == f"Record({name_of(Config)}: width=3, layers=[1], made=1)"
    assert there_and_back(Color.RED).name == "RED"


def test_plain_torch_reads_own_classes_as_plain_values() -> None:
    stream = io.BytesIO()
    holdfast.save({"e": Color.BLUE, "d": Config(1), "p": Point(1, 2)}, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=True)
    assert loaded["d"] == {"width": 1, "layers": [], "made": 1}


def test_a_trusted_class_that_changed_is_named() -> None:
    stream = io.BytesIO()
    holdfast.save([Point(1, 2), Color.RED], stream)
    sys.modules[HERE].Point = Config
    stream.seek(0)
    with pytest.raises(
        MismatchError, match=r"holds a .*Point with the fields x, y, which the class here does not take"
    ):
        holdfast.load(stream, trusted={name_of(Point)})
    sys.modules[HERE].Color = Level
    stream.seek(0)
    with pytest.raises(MismatchError, match=r"Color with the fields name, value.*KeyError: 'RED'.*holdfast.Record"):
        holdfast.load(stream, trusted={name_of(Color)})


def test_a_trusted_name_that_is_nothing() -> None:
    with pytest.raises(UntrustedType, match=r"trusted name 'no.such.Thing' is no class that can be imported here"):
        trusted_class("no.such.Thing")
    with pytest.raises(UntrustedType, match=r"trusted name 'os.path.join' is no class"):
        trusted_class("os.path.join")
    with pytest.raises(UntrustedType, match=r"trusted name 'nodots' is no class"):
        trusted_class("nodots")


def test_trusting_imports_what_was_trusted_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: asked.append(name) or real(name))
    tree = Typed("record", {"class": "this.Config", "form": "dataclass", "fields": {}})
    assert type(lift(tree, Lifting(leaf=lambda leaf: leaf, trusted={"other.Config"}))) is Record
    assert asked == []
    assert "this" not in sys.modules


# -- refused on saving


class Stuck:
    pass


def cyclic_list() -> Any:
    value: list[Any] = [1]
    value.append({"again": (value,)})
    return value


def with_attribute() -> Any:
    value = collections.OrderedDict(a=1)
    value.mine = 2  # type: ignore[attr-defined]
    return value


class MyDict(dict):  # type: ignore[type-arg]
    pass


def deep(levels: int) -> Any:
    value: Any = 1
    for index in range(levels):
        value = [value] if index % 2 else {"k": value}
    return value


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        (
            {"cfg": [lambda: 0]},
            "model.cfg.0",
            r"`model.cfg.0`: a value of type function can't be stored. Store what it is",
        ),
        (
            {"cfg": Stuck()},
            "model.cfg",
            r"a value of type .*Stuck can't be stored.*state_dict\(\) and load_state_dict\(\)",
        ),
        ({"f": io.StringIO()}, "model.f", r"a value of type _io.StringIO can't be stored"),
        ({1: {"f": print}}, "model.1.f", r"builtin_function_or_method"),
        (argparse.Namespace(a=(1, print)), "model.a.1", "can't be stored"),
        (collections.deque([0, print]), "model.1", "can't be stored"),
        (collections.defaultdict(list, {"k": print}), "model.k", "can't be stored"),
        (([1, print],), "model.0.1", "can't be stored"),
        (Frozen([print]), "model.a.0", "can't be stored"),
        (collections.OrderedDict(a=[print]), "model.a.0", "can't be stored"),
        (MyDict(), "model", r"MyDict can't be stored"),
        (cyclic_list(), "model.1.again.0", r"`model.1.again.0`: contains itself; break the cycle before saving"),
        (
            with_attribute(),
            "model",
            r"an OrderedDict with attributes \(mine\) that a file would lose; delete them first",
        ),
        (
            collections.defaultdict(lambda: 0),
            "model",
            r"collections.defaultdict can't be stored: its default_factory is <function.*; only bool, dict, float",
        ),
        (np.array([object()]), "model", r"its dtype is object; arrays of objects and of records can't be stored"),
        (np.zeros(1, "i4,f4"), "model", r"arrays of objects and of records can't be stored without running code"),
        (
            datetime.datetime(2024, 1, 1, tzinfo=type("Own", (datetime.tzinfo,), {})()),
            "model",
            r"its time zone is a Own; use datetime.timezone or a named ZoneInfo",
        ),
        (deep(SAVE_DEPTH + 1), "model.k.0.k.0", rf"nested deeper than {SAVE_DEPTH} levels"),
    ],
    ids=lambda value: None,
)
@pytest.mark.parametrize("form", FORMATS)
def test_what_cant_be_stored_is_named_by_its_path(value: Any, path: str, message: str, form: str) -> None:
    stream = io.BytesIO(b"old")
    with pytest.raises(UnsupportedValue, match=message) as caught:
        holdfast.save({"ok": 1, "model": value}, stream, format=form)
    assert caught.value.path is not None
    assert caught.value.path.startswith(path[:400])
    assert stream.getvalue() == b"old"


def test_the_same_list_twice_is_no_cycle() -> None:
    shared = [1]
    assert there_and_back([shared, shared, {"a": shared}]) == [[1], [1], {"a": [1]}]


def nested(kind: str, levels: int) -> Any:
    value: Any = torch.ones(1)
    for _ in range(levels):
        if kind == "state_dict":
            value = collections.OrderedDict({1: value})
            value._metadata = collections.OrderedDict()
        else:
            value = {
                "list": lambda v: [v],
                "dict": lambda v: {"a": v},
                "keys": lambda v: {1: v},
                "tuple": lambda v: (v,),
                "namespace": lambda v: argparse.Namespace(a=v),
                "record": Frozen,
            }[kind](value)
    return value


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["list", "dict", "keys", "tuple", "namespace", "record", "state_dict"])
def test_the_deepest_tree_that_is_saved_can_be_loaded(kind: str, form: str) -> None:
    there_and_back(nested(kind, SAVE_DEPTH - 1), form)


def called_from(depth: int, what: Any) -> Any:
    return what() if depth == 0 else called_from(depth - 1, what)


def test_a_deep_caller_gets_an_error_of_ours() -> None:
    room = sys.getrecursionlimit() - len(list(_frames()))
    how = Lowering(lambda value, path: None, lambda value, path: None)
    with pytest.raises(UnsupportedValue, match="nested too deep to be saved from here"):
        called_from(room - 60, lambda: lower(deep(SAVE_DEPTH - 1), how))
    tree = deep(SAVE_DEPTH - 1)
    with pytest.raises(RefusedFile, match=r"`f.pt`: its tree is nested too deep to be loaded from here"):
        called_from(room - 60, lambda: lift(tree, Lifting(leaf=lambda leaf: leaf, file="f.pt")))


def _frames() -> Any:
    frame: Any = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


# -- refused on loading


def lifted(tree: Any, **how: Any) -> Any:
    return lift(tree, Lifting(leaf=lambda leaf: leaf, file="f.pt", **how))


def test_a_kind_of_the_future() -> None:
    with pytest.raises(
        CorruptFile, match=r"`f.pt`: holds a value of kind 'warp', unknown to this version; a newer hold"
    ):
        lifted(Typed("warp", 1))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("bytearray", 10**13),
        ("fraction", [1, 0]),
        ("decimal", "x"),
        ("range", [0, 1, 0]),
        ("slice", 5),
        ("path", 5),
        ("date", "yesterday"),
        ("datetime", {"iso": "2024-01-01", "fold": 0, "zone": "../../etc/passwd"}),
        ("timedelta", [10**30, 0, 0]),
        ("defaultdict", {"factory": "eval", "items": []}),
        ("deque", {"items": 5, "maxlen": 1}),
        ("set", [[1]]),
        ("dict", [[[1], 2]]),
        ("namespace", {"self": 1}),
        ("torch.dtype", "load"),
        ("torch.dtype", 5),
        ("torch.device", "warp:1"),
        ("torch.Size", ["a"]),
        ("numpy.dtype", "O"),
        ("numpy.dtype", "f4,f4"),
        ("numpy.scalar", {"dtype": "<f8", "data": b"1"}),
        ("numpy.array", {"dtype": "O", "shape": [1], "data": bytes(8)}),
        ("numpy.array", {"dtype": "<f8", "shape": [10**12], "data": b""}),
        ("numpy.array", {"dtype": "<f8", "shape": [-2], "data": bytes(8)}),
        ("numpy.array", {"tensor": "no"}),
    ],
)
def test_a_payload_that_lies(kind: str, payload: Any) -> None:
    with pytest.raises(CorruptFile, match=rf"`f.pt`: a value of kind '{kind}' is damaged: ."):
        lifted({"deep": [Typed(kind, payload)]})


def test_objects_of_other_classes() -> None:
    tree = {"net": Opaque("my.Net", [1, Typed("tuple", [2])], {"w": 3})}
    with pytest.raises(UntrustedType, match=r"holds an object of class my.Net, which is not rebuilt.*opaque=True"):
        lifted(tree)
    assert lifted(tree, opaque=True) == {"net": Opaque("my.Net", [1, (2,)], {"w": 3})}
