"""What pickles would import and call, in every container and every disguise."""

from __future__ import annotations

import functools
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import NotFound
from holdfast.formats.scan import ScanReport, scan
from holdfast.formats.verdicts import judge


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call or (os.system, "true")

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def scanned(data: bytes) -> ScanReport:
    return scan(io.BytesIO(data))


def names(report: ScanReport) -> dict[str, str]:
    return {one.name: one.verdict for part in report.pickles for one in part.names}


def saved(obj: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, **options)
    return buffer.getvalue()


# ---- harmless files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_checkpoint(zipped: bool) -> None:
    net = nn.Linear(2, 3)
    state = {"model": net.state_dict(), "epoch": 3, "half": torch.ones(2).half(), "array": np.ones(2), "set": {1}}
    report = scanned(saved(state, _use_new_zipfile_serialization=zipped))
    assert (report.verdict, report.unread, report.is_dangerous) == ("plain", [], False)
    found = {one.name: one.calls for part in report.pickles for one in part.names}
    assert found["torch._utils._rebuild_tensor_v2"] == 3
    assert found["torch.FloatStorage"] == 0


def test_whole_modules() -> None:
    report = scanned(saved(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
    assert (report.verdict, report.is_dangerous) == ("torch", False)
    assert names(report)["torch.nn.modules.linear.Linear"] == "torch"
    report = scanned(saved({"x": Own()}))
    assert (report.verdict, report.is_dangerous) == ("unknown", False)
    (one,) = [one for part in report.pickles for one in part.names if one.verdict == "unknown"]
    assert one.name.endswith(".Own")
    assert one.why.startswith("would import ")


class Own:
    pass


def test_files_without_pickles(tmp_path: Path) -> None:
    holdfast.save({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    (tmp_path / "text.txt").write_text("hello\nN.not a pickle of ours\n" * 100)
    (tmp_path / "empty").write_bytes(b"")
    np.save(tmp_path / "a.npy", np.ones(3))
    for file in tmp_path.iterdir():
        report = scan(file)
        assert (report.pickles, report.problems, report.is_dangerous) == ([], [], False)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="gone`: no such file"):
        scan(tmp_path / "gone")


def test_real_files(material: Path) -> None:
    reports = [scan(file) for file in sorted((material / "torch_history").iterdir())]
    assert len(reports) > 50
    assert [report.file for report in reports if report.is_dangerous] == []


# ---- dangerous ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol: int) -> None:
    data = pickle.dumps({"a": [1, Evil()]}, protocol=protocol)
    report = scanned(data)
    assert names(report) == {f"{os.system.__module__}.system": "dangerous"}
    assert report.pickles[0].names[0].calls == 1
    assert report.is_dangerous


@pytest.mark.parametrize("zipped", [True, False])
def test_in_torch_files(zipped: bool) -> None:
    data = saved({"w": torch.ones(2), "x": Evil(eval, "1")}, _use_new_zipfile_serialization=zipped)
    report = scanned(data)
    assert names(report)["builtins.eval"] == "dangerous"
    assert report.is_dangerous


def test_behind_other_objects_of_a_stream() -> None:
    data = saved(torch.ones(2), _use_new_zipfile_serialization=False)
    data += saved(Evil(), _use_new_zipfile_serialization=False)
    assert scanned(data).verdict == "dangerous"
    assert scanned(pickle.dumps(1) + pickle.dumps(Evil(), protocol=0)).verdict == "dangerous"


def test_in_archives_inside_archives(tmp_path: Path) -> None:
    inner = saved(Evil())
    for level in range(7):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("model/inner.pt", inner)
        inner = buffer.getvalue()
        report = scanned(inner)
        assert report.is_dangerous
        if level < 3:
            assert report.verdict == "dangerous"
            assert report.pickles[0].where.endswith("data.pkl")
    assert "an archive inside 4 others" in report.unread[0]


def test_arrays_of_objects(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Evil()], dtype=object))
    np.savez(tmp_path / "b.npz", x=np.array([Evil()], dtype=object), y=np.ones(2))
    assert scan(tmp_path / "a.npy").verdict == "dangerous"
    report = scan(tmp_path / "b.npz")
    assert (report.verdict, report.pickles[0].where) == ("dangerous", "x.npy")


def test_a_call_whose_result_is_thrown_away() -> None:
    data = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R0N."
    assert pickle.loads(data) is None
    report = scanned(data)
    assert [(one.name, one.calls) for one in report.pickles[0].names] == [("os.system", 1)]


@pytest.mark.parametrize("tail", [b"", b"\xff", b"R", b"\x94" * 3 + b"h\x99"])
def test_a_pickle_that_breaks_off_after_its_call(tail: bytes) -> None:
    data = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R" + tail
    with pytest.raises((EOFError, pickle.UnpicklingError, TypeError, IndexError, KeyError)):
        pickle.loads(data)
    report = scanned(data)
    assert report.verdict == "dangerous"
    assert len(report.unread) == 1
    assert "of the pickle" in report.unread[0]


def test_names_put_together_while_it_runs() -> None:
    data = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400h\x00h\x01\x93\x8c\x04true\x85R."
    assert pickle.loads(data) == 0
    assert names(scanned(data)) == {"os.system": "dangerous"}


def test_getattr_on_names_and_on_objects() -> None:
    harmless = scanned(saved({"act": torch.relu}))
    assert (harmless.verdict, harmless.is_dangerous) == ("torch", False)
    through = pickle.dumps(Evil(getattr, nn.Module, "os"))
    assert names(scanned(through))["torch.nn.modules.module.Module.os"] == "dangerous"
    on_object = pickle.dumps(Evil(getattr, OrderedDict(), "x"))
    found = [one for one in scanned(on_object).pickles[0].names if one.name == "builtins.getattr"]
    assert [(one.verdict, one.why) for one in found] == [
        ("dangerous", "reaches 'x' of an object that the pickle makes")
    ]
    assert scanned(pickle.dumps(getattr)).verdict == "dangerous"


def test_what_is_compressed_or_too_long_is_not_called_harmless() -> None:
    report = scanned(b"\x1f\x8b" + bytes(50))
    assert report.is_dangerous
    assert report.unread == ["is compressed with gzip; decompress it and scan what is inside"]
    report = scanned(pickle.dumps(None) * 1500)
    assert report.is_dangerous
    assert report.unread == ["more than 1,000 pickles, the rest was not looked into"]


def test_what_reaches_outside_is_not_called_harmless() -> None:
    report = scanned(b"\x80\x02\x82\x01.")
    assert report.is_dangerous
    assert "extension registry" in report.unread[0]


def test_a_damaged_archive_is_not_called_harmless() -> None:
    data = bytearray(saved(Own()))
    data[-4:] = b"\xff\xff\xff\xff"
    assert scanned(bytes(data)).is_dangerous
    assert scanned(bytes(data)).verdict == "plain"


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "verdict"),
    [
        ("collections", "OrderedDict", "plain"), ("builtins", "set", "plain"), ("torch", "float16", "plain"),
        ("torch", "BFloat16Storage", "plain"), ("copyreg", "_reconstructor", "plain"), ("__torch__.a.b", "C", "plain"),
        ("numpy._core.multiarray", "_reconstruct", "plain"), ("numpy", "dtype", "plain"),
        ("torch.nn.modules.linear", "Linear", "torch"), ("torch.optim.adam", "Adam", "torch"),
        ("torch.nn.functional", "relu", "plain"), ("torch.nn.functional", "silu", "torch"),
        ("my.pkg", "Net", "unknown"), ("functools", "partial", "unknown"),
        ("torch.fx._symbolic_trace", "Tracer", "unknown"),
        ("torch.nn.modules.module", "os.system", "dangerous"), ("torch.nn.modules.module", "sys", "dangerous"),
        ("my.pkg", "os.system", "dangerous"), ("os", "system", "dangerous"), ("nt", "system", "dangerous"),
        ("builtins", "exec", "dangerous"), ("subprocess", "Popen", "dangerous"), ("torch", "load", "dangerous"),
        ("torch.hub", "load", "dangerous"), ("torch.storage", "_load_from_bytes", "dangerous"),
        ("torch.fx.graph_module", "reduce_graph_module", "dangerous"), ("runpy", "_run_code", "dangerous"),
        ("numpy.testing._private.utils", "runstring", "dangerous"), ("asyncio.unix_events", "x", "dangerous"),
        ("torch.utils.collect_env", "run", "dangerous"), ("pip._internal", "main", "dangerous"),
    ],
)  # fmt: skip
def test_verdicts(module: str, name: str, verdict: str) -> None:
    assert judge(module, name)[0] == verdict


def test_partial_is_as_good_as_what_it_holds() -> None:
    assert scanned(pickle.dumps(functools.partial(os.system, "true"))).verdict == "dangerous"
