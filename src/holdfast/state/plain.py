"""Plain values whose types live in the standard library."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import pathlib
import zoneinfo
from collections.abc import Iterator
from typing import Any


def _same(value: Any) -> Any:
    return value


def pairs(mapping: Any) -> list[list[Any]]:
    """The items of a mapping as [key, value], in order."""
    return [[key, value] for key, value in mapping.items()]


_FACTORIES = {cls.__name__: cls for cls in (list, dict, int, float, str, set, tuple, bool)}


def _lower_defaultdict(value: Any) -> dict[str, Any]:
    factory = value.default_factory
    if factory is not None and _FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
        raise TypeError(f"its default_factory is {factory!r}; only {', '.join(sorted(_FACTORIES))} can be stored")
    return {"factory": factory and factory.__name__, "items": pairs(value)}


def _lift_defaultdict(payload: Any) -> Any:
    factory = payload["factory"]
    return collections.defaultdict(None if factory is None else _FACTORIES[factory], payload["items"])


def _lower_datetime(value: datetime.datetime) -> dict[str, Any]:
    zone = value.tzinfo
    if zone is None or type(zone) is datetime.timezone:
        return {"iso": value.isoformat(), "fold": value.fold}
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
        return {"iso": value.replace(tzinfo=None).isoformat(), "fold": value.fold, "zone": zone.key}
    raise TypeError(f"its time zone is a {type(zone).__name__}; use datetime.timezone or a named ZoneInfo")


def _lift_datetime(payload: Any) -> datetime.datetime:
    value = datetime.datetime.fromisoformat(payload["iso"]).replace(fold=payload["fold"])
    if "zone" not in payload:
        return value
    name = payload["zone"]
    if name not in zoneinfo.available_timezones():  # the name becomes part of a path on disk
        raise ValueError(f"no time zone {name!r} here")
    return value.replace(tzinfo=zoneinfo.ZoneInfo(name))


def _lift_bytearray(payload: Any) -> bytearray:
    if type(payload) is not bytes:
        raise TypeError("it is made of bytes")  # of a number, bytearray() would make as many zeros
    return bytearray(payload)


def plain_kinds(kind: Any) -> Iterator[Any]:
    """The rows for the table in ``kinds``, made with its ``Kind``."""
    yield kind("tuple", tuple, list, tuple, tuple)
    yield kind("set", set, list, set, set)
    yield kind("frozenset", frozenset, list, frozenset, list)
    yield kind("dict", dict, pairs, dict, dict)  # only dicts with keys that are not all strings
    yield kind("ordered_dict", collections.OrderedDict, pairs, collections.OrderedDict, collections.OrderedDict)
    yield kind("counter", collections.Counter, pairs, lambda p: collections.Counter(dict(p)), dict)
    yield kind(
        "defaultdict", collections.defaultdict, _lower_defaultdict, _lift_defaultdict, lambda p: dict(p["items"])
    )
    yield kind(
        "deque",
        collections.deque,
        lambda v: {"items": list(v), "maxlen": v.maxlen},
        lambda p: collections.deque(p["items"], p["maxlen"]),
        lambda p: list(p["items"]),
    )
    yield kind("bytearray", bytearray, bytes, _lift_bytearray, bytes)
    yield kind("namespace", argparse.Namespace, lambda v: dict(vars(v)), lambda p: argparse.Namespace(**p), _same)
    for path_type in (pathlib.PosixPath, pathlib.WindowsPath):
        yield kind("path", path_type, str, pathlib.Path, str)
    for pure_type in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
        yield kind(pure_type.__name__, pure_type, str, pure_type, str)
    yield kind("datetime", datetime.datetime, _lower_datetime, _lift_datetime, lambda p: p["iso"])
    yield kind("date", datetime.date, datetime.date.isoformat, datetime.date.fromisoformat, _same)
    yield kind("time", datetime.time, datetime.time.isoformat, datetime.time.fromisoformat, _same)
    yield kind(
        "timedelta",
        datetime.timedelta,
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda p: datetime.timedelta(days=p[0], seconds=p[1], microseconds=p[2]),
        lambda p: p[0] * 86400 + p[1] + p[2] / 1e6,
    )
    yield kind(
        "fraction", fractions.Fraction, lambda v: [v.numerator, v.denominator], lambda p: fractions.Fraction(*p), _same
    )
    yield kind("decimal", decimal.Decimal, str, decimal.Decimal, _same)
    yield kind("slice", slice, lambda v: [v.start, v.stop, v.step], lambda p: slice(*p), list)
    yield kind("range", range, lambda v: [v.start, v.stop, v.step], lambda p: range(*p), list)
    yield kind("ellipsis", type(...), lambda _: None, lambda _: ..., _same)
