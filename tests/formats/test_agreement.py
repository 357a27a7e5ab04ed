"""A file that shows holdfast another tree than torch, every digest and checksum in it true."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import holdfast
from holdfast.errors import CorruptFile
from tests.hostile.mutations import OWN, records, sealed, tree, zipped

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of nested and quantized tensors when they are made


class Last(Random):
    """Stored, never deflated."""

    def randrange(self, *_: Any) -> int:
        return 1


def forged(path: Path, value: Any, change: Callable[[dict[str, Any]], Any]) -> Path:
    holdfast.save(value, path)
    parts = records(path.read_bytes())
    top = next(iter(parts)).partition("/")[0]

    def changed(record: dict[str, Any]) -> dict[str, Any]:
        change(record)
        return record

    parts[f"{top}/{OWN}"] = sealed(parts[f"{top}/{OWN}"], parts[f"{top}/data.pkl"], changed)
    path.write_bytes(zipped(list(parts.items()), Last()))
    return path


HONEST: dict[str, Any] = {
    "w": torch.arange(6.0).reshape(2, 3),
    "v": torch.zeros(2, 3),
    "epoch": 3,
    "args": {"lr": 0.0, "names": ("a",)},
}


def exchange(record: dict[str, Any]) -> None:
    entries = record["tree"]
    entries["w"], entries["v"] = entries["v"], entries["w"]


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another number": (lambda r: r["tree"].update(epoch=4), "epoch"),
    "another type": (lambda r: r["tree"].update(epoch=True), "epoch"),
    "minus zero": (lambda r: r["tree"]["args"].update(lr=-0.0), "args.lr"),
    "another text": (lambda r: r["tree"]["args"].update(names={"$tuple": ["b"]}), "args.names.0"),
    "a list for a tuple": (lambda r: r["tree"]["args"].update(names=["a"]), "args.names"),
    "two tensors exchanged": (exchange, "w"),
    "another shape": (lambda r: r["tree"]["w"]["$tensor"].__setitem__(2, [3, 2]), "w"),
    "another dtype": (lambda r: r["tree"]["w"]["$tensor"].__setitem__(1, "int32"), "w"),
    "a gradient": (lambda r: r["tree"]["w"]["$tensor"].extend([None, 0, True]), "w"),
    "one more": (lambda r: r["tree"].update(more=1), ""),
    "one less": (lambda r: r["tree"].pop("epoch"), ""),
    "another order": (lambda r: r["tree"].update(w=r["tree"].pop("w")), ""),
    "another device": (lambda r: r["locations"].update({"cuda:0": [0]}), "w"),
    "what no pickle holds": (lambda r: r["tree"].update(epoch={"$opaque": ["os.system", [], None]}), "epoch"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_record_is_corrupt(name: str, tmp_path: Path) -> None:
    change, where = FORGERIES[name]
    path = forged(tmp_path / "f.pt", HONEST, change)
    report = holdfast.verify(path)
    assert report.status == "CORRUPT"
    assert report.findings[0].name == (where or "(root)")
    assert "is one thing in .data/holdfast, which holdfast reads, and another in data.pkl" in report.findings[0].problem
    with pytest.raises(CorruptFile, match=r"is one thing in \.data/holdfast"):
        holdfast.convert(path, tmp_path / "g.safetensors")
    assert not (tmp_path / "g.safetensors").exists()


def test_only_the_forgery_is_noticed(tmp_path: Path) -> None:
    assert holdfast.verify(forged(tmp_path / "f.pt", HONEST, lambda record: None)).status == "OK"


def test_everything_that_is_saved_agrees(tmp_path: Path) -> None:
    import collections
    import datetime
    import fractions

    import numpy as np

    tagged = torch.ones(2)
    tagged.mine = torch.zeros(1)  # type: ignore[attr-defined]
    value = tree() | {
        "odd": [math.nan, -math.inf, -0.0, 2**70, "\ud800", collections.deque([1], 3), datetime.date(2024, 1, 1)],
        "numpy": [np.float32(0.5), np.arange(3), np.array(["a"]), np.datetime64("2024-01-01")],
        "more": [
            Path("a"),
            fractions.Fraction(1, 3),
            frozenset({1}),
            range(3),
            slice(1),
            collections.defaultdict(list),
        ],
        "tagged": tagged,
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    }
    holdfast.save(value, tmp_path / "f.pt")
    assert holdfast.verify(tmp_path / "f.pt").status == "OK"
    holdfast.convert(tmp_path / "f.pt", tmp_path / "g.pt")
    assert holdfast.verify(tmp_path / "g.pt").status == "OK"


def test_a_stream_is_checked_too() -> None:
    stream = io.BytesIO()
    holdfast.save(HONEST, stream)
    stream.seek(0)
    out = io.BytesIO()
    assert holdfast.convert(stream, out, format="safetensors").tensors == 2
