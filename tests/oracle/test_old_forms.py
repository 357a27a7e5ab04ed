"""Forms that older versions of torch wrote and this one does not, made with its own pickler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_compressed_sparse_tensors_of_torch_1_13(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = torch.eye(3).to_sparse_csr()

    def rebuild(layout: torch.layout, data: Any) -> Any:
        raise AssertionError("a file ran code")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_sparse_csr_tensor"
    monkeypatch.setattr(torch._utils, "_rebuild_sparse_csr_tensor", rebuild, raising=False)

    class Written:
        def __reduce__(self) -> Any:
            parts = wanted.crow_indices(), wanted.col_indices(), wanted.values(), wanted.shape
            return rebuild, (torch.sparse_csr, parts)

    for zipped in (True, False):
        torch.save({"w": Written()}, tmp_path / "old.pt", _use_new_zipfile_serialization=zipped)
        found = holdfast.load(tmp_path / "old.pt")["w"]
        assert found.layout is torch.sparse_csr
        assert torch.equal(found.to_dense(), torch.eye(3))
