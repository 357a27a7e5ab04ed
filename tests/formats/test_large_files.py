"""Opening a file takes its headers, however many bytes lie between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from holdfast.formats.detect import open_container
from holdfast.state.flatten import leaves
from holdfast.storage.source import FileSource

TENSORS, EACH = 100, 1 << 30


class Counting(FileSource):
    """Counts the bytes that are read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.bytes = self.calls = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.bytes += buffer.nbytes
        self.calls += 1
        super().read_into(offset, buffer)


def safetensors(path: Path) -> None:
    """A header, and a hole of 100 GB."""
    rows = {
        f"layers.{index}.weight": {
            "dtype": "F32",
            "shape": [EACH // 4],
            "data_offsets": [index * EACH, (index + 1) * EACH],
        }
        for index in range(TENSORS)
    }
    header = json.dumps(rows).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + TENSORS * EACH)


def torch_zip(path: Path) -> None:
    """What torch writes for tensors whose data it is told to leave out."""
    hole = path.with_suffix(".hole")
    with hole.open("wb") as file:
        file.truncate(EACH)
    state = {
        f"layers.{index}.weight": torch.from_file(str(hole), shared=True, size=EACH // 4) for index in range(TENSORS)
    }
    with torch.serialization.skip_data():
        torch.save(state, path)


@pytest.mark.parametrize("write", [safetensors, torch_zip])
def test_a_large_file_is_opened_by_less_than_a_megabyte(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "large"
    write(path)
    assert path.stat().st_size > 100e9
    source = Counting(path)
    with open_container(source, str(path)) as container:
        tensors = list(leaves(container.document().tree))
        assert sum(tensor.segment.length for _, tensor in tensors) == TENSORS * EACH
        assert len(container.segments()) >= TENSORS
    assert source.bytes < 1 << 20
    assert source.calls < 3 * TENSORS
