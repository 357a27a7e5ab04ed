"""Statistics of stored tensors against torch's own, for every kind of tensor that a file can hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.errors import CorruptFile
from holdfast.formats.base import Segment, StoredTensor
from holdfast.runs.opening import open_any
from holdfast.serialization import statistics
from holdfast.serialization.statistics import tensor_stats
from holdfast.spec import CHUNK, DTYPES, TensorSpec
from holdfast.state.flatten import leaves
from holdfast.state.statistics import TensorStats, to_plain
from holdfast.storage.source import MemorySource
from tests.runs.hand_made import flip


def stats_of(tensor: torch.Tensor, folder: Path, suffix: str = ".pt") -> TensorStats:
    file = folder / f"one{suffix}"
    holdfast.save({"w": tensor}, file)
    with open_any(str(file)) as container:
        ((_, leaf),) = leaves(container.document().tree)
        return tensor_stats(leaf, thumbnail=True)


def check(found: TensorStats, tensor: torch.Tensor) -> None:
    """Against torch, in float64."""
    values = (
        tensor.detach().to(torch.float32 if tensor.dtype.itemsize == 1 else tensor.dtype).to(torch.float64).flatten()
    )
    finite = values[values.isfinite()]
    assert found.count == values.numel()
    assert found.nan == int(values.isnan().sum())
    assert found.inf == int(values.isinf().sum())
    assert found.zeros == int((values == 0).sum())
    if not finite.numel():
        assert found.min is found.max is found.mean is found.std is found.norm is None
        return
    assert (found.min, found.max) == (float(finite.min()), float(finite.max()))
    for ours, theirs in (
        (found.mean, finite.mean()),
        (found.std, finite.std(correction=0)),
        (found.norm, finite.norm()),
    ):
        assert ours == pytest.approx(float(theirs), rel=1e-9, abs=1e-12)
    histogram = found.histogram
    counted = sum((*histogram.negative, *histogram.positive)) if histogram else 0
    assert counted == int((finite != 0).sum())


NUMBERS = [
    name
    for name in DTYPES
    if isinstance(getattr(torch, name, None), torch.dtype)
    and not name.startswith(("q", "bits", "float4", "complex", "float8_e8m0"))
]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_dtype_of_numbers_is_counted(name: str, tmp_path: Path) -> None:
    values = torch.randn(30, 7) * 3
    dtype = getattr(torch, name)
    tensor = (values if dtype.is_floating_point else values.abs() * 5).to(dtype)
    check(stats_of(tensor, tmp_path), tensor)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (5, 0, 2), (3, 1), (40, 70), (6, 5, 4, 3)])
def test_every_shape_is_counted(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    tensor = torch.randn(shape)
    found = stats_of(tensor, tmp_path, suffix)
    check(found, tensor)
    assert (found.thumbnail is not None) is (len(shape) > 1 and tensor.numel() > 0)


@pytest.mark.parametrize(
    "bad", [[math.nan], [math.inf, -math.inf], [math.nan, math.inf, 1.0, 0.0, -0.0], [1e308, 1e308, -1e308], [5e-324]]
)
def test_what_is_not_finite_is_counted_and_left_out(bad: list[float], tmp_path: Path) -> None:
    tensor = torch.tensor(bad, dtype=torch.float64)
    found = stats_of(tensor, tmp_path)
    assert found.nan == int(tensor.isnan().sum())
    assert found.inf == int(tensor.isinf().sum())
    finite = tensor[tensor.isfinite()]
    assert found.max == (float(finite.max()) if finite.numel() else None)
    plain = to_plain(found)
    assert all(math.isfinite(value) for value in plain.values() if isinstance(value, float))


@pytest.mark.parametrize("extra", [-3, 0, 5])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pieces_add_up_to_the_whole(extra: int, suffix: str, tmp_path: Path) -> None:
    tensor = torch.randn(2 * CHUNK // 4 + extra) * 2 + 100
    check(stats_of(tensor, tmp_path, suffix), tensor)


def test_strides_and_views_are_counted_as_what_they_show(tmp_path: Path) -> None:
    base = torch.randn(50, 60)
    for tensor in (
        base.t(),
        base[:, ::2],
        base[3:9, 5:7],
        torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
    ):
        check(stats_of(tensor, tmp_path), tensor)


def test_an_expanded_tensor_counts_what_is_stored(tmp_path: Path) -> None:
    found = stats_of(torch.arange(3.0)[:, None].expand(3, 1 << 20), tmp_path)
    assert (found.count, found.min, found.max) == (3, 0.0, 2.0)
    assert "expanded" in found.note


def test_a_file_that_claims_more_elements_than_it_has_costs_nothing() -> None:
    segment = Segment(MemorySource(bytes(64)), 0, 64)
    huge = StoredTensor(TensorSpec("float32", (1 << 30, 1 << 30, 2), (0, 0, 1)), segment)
    assert tensor_stats(huge).count == 2
    windows = StoredTensor(TensorSpec("float32", (8, 8), (1, 1)), segment)
    assert tensor_stats(windows).note == "no statistics: its elements overlap in memory"


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:.*quantize")  # torch says each once in a process
def test_complex_quantized_and_packed_tensors_say_what_was_counted(tmp_path: Path) -> None:
    z = torch.tensor([3 + 4j, 0])
    found = stats_of(z, tmp_path)
    assert (found.max, found.min, found.note) == (5.0, 0.0, "of the magnitudes")
    assert stats_of(z.to(torch.complex32), tmp_path).max == 5.0
    q = torch.quantize_per_tensor(torch.tensor([-1.0, 0.0, 2.0]), 0.5, 3, torch.qint8)
    found = stats_of(q, tmp_path)
    assert (found.min, found.max, found.note) == (1.0, 7.0, "of the stored integers")
    packed = StoredTensor(TensorSpec("bits1x8", (4,)), Segment(MemorySource(bytes(4)), 0, 4))
    assert tensor_stats(packed).note == "no statistics of bits1x8: several elements share a byte"


def test_the_parts_of_a_sparse_tensor_are_counted(tmp_path: Path) -> None:
    holdfast.save({"s": torch.eye(4).to_sparse() * 2}, tmp_path / "s.pt")
    with open_any(str(tmp_path / "s.pt")) as container:
        found = {path[-1]: tensor_stats(leaf) for path, leaf in leaves(container.document().tree)}
    assert found["values"].mean == 2.0
    assert found["indices"].max == 3.0


def test_dead_tensors_are_told(tmp_path: Path) -> None:
    assert stats_of(torch.zeros(9), tmp_path).dead == "all zero"
    assert stats_of(-torch.zeros(9), tmp_path).dead == "all zero"
    assert stats_of(torch.full((2, 2), 0.1), tmp_path).dead == "constant 0.1"
    for alive in (torch.zeros(()), torch.zeros(1), torch.tensor([0.0, 1e-30]), torch.tensor([0.0, math.nan])):
        assert stats_of(alive, tmp_path).dead is None
    assert stats_of(torch.tensor([math.nan, math.inf]), tmp_path).findings == ("1 NaN", "1 infinite")


def test_a_histogram_has_a_bin_an_octave_and_both_signs(tmp_path: Path) -> None:
    found = stats_of(torch.tensor([1.0, 1.5, -2.0, 7.9, 0.0, math.nan]), tmp_path).histogram
    assert found is not None
    assert (found.first, found.negative, found.positive) == (0, (0, 1, 0), (2, 0, 1))
    extreme = stats_of(torch.tensor([1e-300, 1e300], dtype=torch.float64), tmp_path).histogram
    assert extreme is not None
    assert (extreme.first, len(extreme.positive)) == (-64, 128)


@pytest.mark.parametrize("shape", [(64, 64), (100, 7), (7, 100), (33, 65), (2, 3, 50), (1, 5000)])
def test_a_picture_is_the_mean_of_each_block(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_AT_ONCE", 97)  # rows lie in several pieces
    tensor = torch.randn(shape)
    picture = stats_of(tensor, tmp_path).thumbnail
    assert picture is not None
    matrix = tensor.reshape(shape[0], -1).double()
    rows = [at * picture.rows // matrix.shape[0] for at in range(matrix.shape[0])]
    borders = [at * matrix.shape[1] // picture.columns for at in range(picture.columns + 1)]
    for row in range(picture.rows):
        lines = matrix[[at for at, one in enumerate(rows) if one == row]]
        for column in range(picture.columns):
            wanted = lines[:, borders[column] : borders[column + 1]].mean()
            assert picture.cells[row * picture.columns + column] == pytest.approx(float(wanted), abs=1e-9)


def test_a_cell_with_nan_is_empty(tmp_path: Path) -> None:
    tensor = torch.ones(64, 64)
    tensor[63, 0] = math.nan
    tensor[0, 63] = math.inf
    picture = stats_of(tensor, tmp_path).thumbnail
    assert picture is not None
    assert [at for at, cell in enumerate(picture.cells) if cell is None] == [31, 31 * 32]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_bytes_have_no_statistics(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"one{suffix}"
    holdfast.save({"w": torch.ones(1000)}, file)
    flip(file, 2000)
    with open_any(str(file)) as container:
        ((_, leaf),) = leaves(container.document().tree)
        with pytest.raises(CorruptFile, match="corrupt"):
            tensor_stats(leaf)


def test_memory_that_tensors_share_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.randn(64)
    torch.save({"a": base[:8], "b": base[8:16], "c": base}, tmp_path / "views.pt")
    calls = []
    real = statistics.verify_segments
    monkeypatch.setattr(statistics, "verify_segments", lambda segments: calls.append(1) or real(segments))
    checked: set[int] = set()
    with open_any(str(tmp_path / "views.pt")) as container:
        found = [tensor_stats(leaf, checked=checked) for _, leaf in leaves(container.document().tree)]
    assert [one.count for one in found] == [8, 8, 64]
    assert len(calls) == 1
