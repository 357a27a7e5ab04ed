"""What is refused where several processes save or load, and what a planner of one's own gets wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.tensor import DTensor, Partial

from holdfast.distributed import HoldfastReader, HoldfastWriter, planning, saving
from holdfast.distributed.writer import HoldfastWriter as Direct
from holdfast.errors import ArgumentError, UnsupportedValue
from holdfast.formats.base import Document, StoredTensor
from holdfast.serialization.sharded import local_part
from holdfast.spec import TensorSpec
from holdfast.state.values import Typed
from tests.runs.hand_made import tensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def refusal(work: Callable[[], object]) -> str:
    """What DCP says that a rank raised; its own exception is no Exception."""
    with pytest.raises(CheckpointException) as caught:
        work()
    (error,) = caught.value.failures.values()
    return f"{type(error[0]).__name__}: {error[0]}"


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Exchanging(dcp.DefaultSavePlanner):
    """Gives the tensor for the number, and the number for the tensor."""

    def resolve_data(self, write_item: Any) -> Any:
        return 3 if write_item.type == WriteItemType.TENSOR else torch.ones(2)


class Forgetful(dcp.DefaultSavePlanner):
    """Tells all of the plan, and no rank to write any."""

    def finish_plan(self, new_plan: Any) -> Any:
        return super().finish_plan(dataclasses.replace(new_plan, items=[]))


class Elsewhere(dcp.DefaultLoadPlanner):
    """Asks for a part that begins where none does."""

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        index = dataclasses.replace(plan.items[0].storage_index, offset=torch.Size([1]))
        return dataclasses.replace(plan, items=[dataclasses.replace(plan.items[0], storage_index=index)])


def test_what_a_planner_of_ones_own_gets_wrong_is_named(tmp_path: Path) -> None:
    def saved(planner: Any, **state: Any) -> str:
        return refusal(
            lambda: dcp.save(state, storage_writer=HoldfastWriter(tmp_path / "c"), planner=planner, no_dist=True)
        )

    sparse = saved(dcp.DefaultSavePlanner(), s=torch.eye(3).to_sparse())
    assert "`s`: a sparse tensor can't be stored as a part of a sharded checkpoint; store to_dense()" in sparse
    assert "`n`: the planner says bytes and gives a tensor" in saved(Exchanging(), n=3)
    assert "`w`: the planner says a tensor and gives none" in saved(Exchanging(), w=torch.ones(2))
    assert "`w`: is in the plan, and no rank wrote it" in saved(Forgetful(), w=torch.ones(2))
    dcp.save({"w": torch.ones(2)}, storage_writer=HoldfastWriter(tmp_path / "c"), no_dist=True)
    reader = HoldfastReader(tmp_path / "c")
    said = refusal(lambda: dcp.load({"w": torch.zeros(2)}, storage_reader=reader, planner=Elsewhere(), no_dist=True))
    assert "`w`: has no part at torch.Size([1])" in said
    with pytest.raises(ArgumentError, match=r"c`: finish\(\) without prepare_global_plan\(\)"):
        Direct(tmp_path / "c").finish(Metadata({}), [])


def test_what_ranks_do_not_have_alike_is_named(tmp_path: Path) -> None:
    alone = planning.Claim("model.w", None, 8, shared=False)
    with pytest.raises(ArgumentError, match=r"`model.w`: rank 1 has it and rank 0 has not: every rank saves the same"):
        planning.deal([[], [alone]])
    whole = tensor(4)
    half = Typed("sharded", {"data": StoredTensor(TensorSpec("float32", (2,)), whole.segment), "shape": [4], "at": [0]})
    with pytest.raises(UnsupportedValue, match=r"`a`: a part of a tensor in memory that others share; clone\(\) it"):
        planning.local_state({"a": half, "b": whole})
    with pytest.raises(ArgumentError, match="`run`: nothing was begun"):
        saving._Save(None, "run", Document({}), None).finish([])


@pytest.mark.usefixtures("group_of_one")
def test_a_sum_that_was_not_made_yet_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    pending = DTensor.from_local(torch.ones(2), mesh, [Partial()])
    with pytest.raises(UnsupportedValue, match="`w`: has no values of its own yet: "):
        local_part(pending, "w")
    monkeypatch.setattr(DTensor, "__create_chunk_list__", lambda _: [])
    with pytest.raises(
        UnsupportedValue, match=r"`w`: this process has 0 parts of it; one is wanted\. Store full_tensor"
    ):
        local_part(pending, "w")
