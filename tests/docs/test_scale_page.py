"""docs/scale.md and benchmarks/scale.py: the tables are the function's, and the function counts what the code does."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import holdfast
from holdfast.runs.entries import encode_entries
from holdfast.runs.manifest import FileRecord
from holdfast.runs.placing import Stored
from holdfast.spec import CHUNK, TensorSpec
from tests.docs.pages import ROOT

DIGEST = "0123456789abcdef" * 2


@pytest.fixture
def models(scale: ModuleType) -> ModuleType:
    return importlib.import_module("scale_models")


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scale")


def small(models: ModuleType) -> Any:
    """A model whose rows do not divide evenly, with pieces of several chunks and of a few bytes."""
    groups = (models.Group(3, 10, 4_000_000), models.Group(5, 7, 3), models.Group(2, 64, 1))
    return models.Model("small", groups, ("bfloat16", "float32"))


def test_the_tables_are_what_the_function_gives(scale: ModuleType) -> None:
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert scale.page(text) == text, "python benchmarks/scale.py --write"


def test_the_numbers_in_the_text_are_those_of_the_tables(scale: ModuleType) -> None:
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8").split("For 70B, in this order:")[1]
    model = scale.MODELS[1]
    found = [scale.first_ranks(model, broken) for broken in scale.BREAKS.values()]
    assert f"**Rank 0**, from {found[1]} ranks" in text
    assert f"**The store's rate**, from {scale.slow_down(scale.Machine())} ranks" in text
    assert f"**The limit of entries.json**, from {found[0]} ranks" in text
    assert f"**Restarting**, from {found[2]:,} ranks" in text
    assert f"**Memory**, from {found[3]:,} ranks" in text
    assert f"from {found[4]:,} ranks on; for 400B" in text
    assert 25 < scale.cost(model, 512).coordinator < 35  # "half a minute"
    assert scale.cost(model, 4096).gets // 10**6 >= 34
    assert 2 * 4096**2 / scale.Machine().gets > 6000  # "close to two hours"
    assert scale.cost(scale.MODELS[2], 4096).largest / scale.Machine().disk < 0.5


def test_the_models_are_as_large_as_their_names(scale: ModuleType) -> None:
    assert [round(model.parameters / 1e9, 2) for model in scale.MODELS] == [6.74, 70.55, 405.85]
    assert all(model.bytes == 14 * model.parameters for model in scale.MODELS)
    assert [model.tensors for model in scale.MODELS] == [4 * 291, 4 * 723, 4 * 1137]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 8, 100])
def test_the_pieces_are_the_model(scale: ModuleType, models: ModuleType, ranks: int) -> None:
    model = small(models)
    held = 0
    for one in scale._plan(model, ranks):
        rows, columns = one.spec.shape
        cut = [len(part) for part in torch.arange(rows).chunk(ranks)]  # as FSDP2 and DTensor cut
        assert (one.height, one.pieces) == (cut[0], len(cut))
        held += one.tensors * sum(cut) * columns * one.spec.itemsize
    assert held == model.bytes
    found = scale.cost(model, ranks)
    assert found.mean == model.bytes / ranks
    assert found.mean <= found.largest <= model.bytes


def test_more_ranks_are_slower_only_by_what_is_done_for_each_entry(scale: ModuleType) -> None:
    machine = scale.Machine()
    for model in scale.MODELS:
        costs = [scale.cost(model, 1 << power) for power in range(3, 13)]
        for one, other in itertools.pairwise(costs):
            assert other.largest <= one.largest
            assert other.stall <= one.stall
            assert other.save_disk - other.coordinator <= one.save_disk - one.coordinator
            opening = [each.entries * machine.measured.open + each.metadata / machine.disk for each in (one, other)]
            assert other.load_disk - opening[1] <= one.load_disk - opening[0]
            assert other.coordinator >= one.coordinator
            if other.save_disk > one.save_disk:
                assert other.coordinator > other.save_disk / 2
            assert other.puts >= other.ranks / 2
            assert other.gathered < other.metadata < other.memory


@pytest.mark.parametrize("index", range(3))
def test_what_breaks_breaks_at_that_number(scale: ModuleType, index: int) -> None:
    model = scale.MODELS[index]
    for broken in scale.BREAKS.values():
        first = scale.first_ranks(model, broken)
        if first is not None:
            assert broken(scale.cost(model, first))
            assert not broken(scale.cost(model, first - 1))


def test_copies_share_the_writing_and_add_no_entries(scale: ModuleType) -> None:
    model = scale.MODELS[2]
    alone, shared = scale.cost(model, 512), scale.cost(model, 4096, cut=512)
    assert shared.entries == alone.entries
    assert shared.largest == alone.largest / 8
    assert shared.files == 4096 + 3


def test_a_rank_of_twice_as_many_reads_at_most_twice_its_bytes(scale: ModuleType, models: ModuleType) -> None:
    for one in scale._plan(small(models), 2):
        verified, wanted = scale._resharded(one, 2)
        assert wanted <= verified <= 2 * max(wanted, one.tensors * CHUNK)
        assert verified <= one.tensors * one.bytes


def test_entries_of_one_process_are_as_long_as_real_ones(scale: ModuleType, models: ModuleType, tmp_path: Path) -> None:
    names = [f"model.layers.{number}.self_attn.q_proj.weight" for number in range(10, 60)]
    net = torch.nn.Module()
    for name in names:
        net.register_buffer(name.replace(".", "_"), torch.zeros(64, 64))
    with holdfast.Run(tmp_path / "a", model=net) as run:
        run.save()
    step = next((tmp_path / "a").glob("step-*"))
    model = models.Model("same", (models.Group(len(names), 64, 64),), ("float32",))
    found = scale.cost(model, 1)
    written = json.loads((step / "entries.json").read_bytes())["entries"]
    ours = [json.dumps(entry, separators=(",", ":")) for entry in written if entry["path"][0] == "model"]
    assert len(ours) == found.entries
    assert sum(map(len, ours)) == pytest.approx(found.metadata - scale.Measured().record, rel=0.1)


def test_entries_of_a_sharded_checkpoint_are_as_many_and_as_long_as_real_ones(
    scale: ModuleType, models: ModuleType
) -> None:
    sharded = pytest.importorskip("holdfast.runs.sharded", reason="sharded checkpoints are not there yet")
    ranks = 12
    model = models.Model("small", (models.Group(20, 30, 3_000_000), models.Group(21, 64, 1)), ("float32", "bfloat16"))
    parts: list[list[Any]] = [[] for _ in range(ranks)]
    tree: dict[str, Any] = {}
    for index, one in enumerate(scale._plan(model, ranks)):
        for number in range(one.tensors):
            key = f"model.layers.{10 + number}.self_attn.{'qkvo'[index]}_proj.weight"
            tree[key.removeprefix("model.")] = sharded.Wanted(key, one.spec)
            at = 0
            for rank, rows in enumerate(len(part) for part in torch.arange(one.spec.shape[0]).chunk(ranks)):
                spec = TensorSpec(one.spec.dtype, (rows, one.spec.shape[1]))
                box, file = f"[{sharded.box_text((at, 0), spec.shape)}]", sharded.rank_file(rank)
                stored = Stored(1 << 30, spec.nbytes, (DIGEST,) * -(-spec.nbytes // CHUNK))
                parts[rank].append(sharded.Piece(key, file, f"{key}{box}", spec.shape, (at, 0), stored))
                at += rows
    record = FileRecord(1 << 40, f"xxh3-128:{DIGEST}", 0)
    told = [sharded.RankPart(sharded.rank_file(rank), record, tuple(of)) for rank, of in enumerate(parts)]
    entries, _ = sharded.sharded_entries({"model": tree}, told, "x")
    found = scale.cost(model, ranks)
    assert found.entries == len(entries)
    assert found.pieces == sum(map(len, parts))
    assert found.files - 3 == sum(map(bool, parts))
    written = found.metadata - (found.files - 3) * scale.Measured().record
    assert len(encode_entries(entries)) == pytest.approx(written, rel=0.05)
