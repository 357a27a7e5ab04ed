"""What a run says of its loader, what it refuses, and that several loaders in a training are right or an error."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

import holdfast
from holdfast.errors import ArgumentError, MismatchError

SIZE, BATCH = 24, 4


class Stopped(Exception):
    """Ends a training in the middle."""


def train(
    root: Path, loader: Any, *, epochs: int = 3, stop: int | None = None, each: Any = None, **run: Any
) -> list[list[int]]:
    """Trains nothing; returns the numbers of each epoch's items. ``stop`` ends it when so many items are
    done and saved, in the next one.

    ``loader`` may be a function of the epoch; ``each`` is called with the loader and the epoch before it begins.
    """
    seen: list[list[int]] = []
    with holdfast.Run(root, model=nn.Linear(1, 1), **{"save": "1step 1ep", **run}) as training:
        for epoch in training.epochs(epochs):
            now = loader(epoch) if callable(loader) else loader
            if each is not None:
                each(now, epoch)
            seen.append([])
            for item in training.batches(now):
                seen[-1] += torch.as_tensor(item).flatten().tolist()
                if training.position.step == stop:
                    return seen
            training.end(epoch)
    return seen


def numbers(**options: Any) -> DataLoader[int]:
    return DataLoader(range(SIZE), batch_size=BATCH, **options)  # type: ignore[arg-type]


def torchdata(data: Any = range(SIZE), **options: Any) -> Any:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torchdata 0.11 calls what torch gave up
        return StatefulDataLoader(data, batch_size=BATCH, **options)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(SIZE))


class Own(Sampler[int]):
    """Draws its order from numpy, as nothing of torch's does."""

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(SIZE).tolist())

    def __len__(self) -> int:
        return SIZE


class CountsInSecret(Own):
    """Each epoch another order, by a counter that nothing outside sees."""

    def __init__(self) -> None:
        self.rounds = 0

    def __iter__(self) -> Iterator[int]:
        self.rounds += 1
        return iter(torch.randperm(SIZE, generator=torch.Generator().manual_seed(self.rounds)).tolist())


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: numbers(num_workers=1),
            "random draws inside loader workers are not covered; the order of the data is",
        ),
        (lambda: numbers(num_workers=1, in_order=False), "with in_order=False the order depends on which worker"),
        (lambda: DataLoader(Stream(), batch_size=BATCH), "an iterable dataset is read again up to its place"),
        (
            lambda: numbers(sampler=CountsInSecret()),
            "the order of CountsInSecret is drawn again from the global random",
        ),
        (
            lambda: torchdata(num_workers=1),
            "random draws inside loader workers are not covered; the order of the data is",
        ),
        (lambda: torchdata(Stream()), "an iterable dataset is read again up to its place"),
        (
            lambda: iter(range(SIZE)),
            "a range_iterator can be read only once: on a resume the program's new one is read",
        ),
    ],
    ids=["workers", "out of order", "stream", "sampler", "torchdata workers", "torchdata stream", "iterator"],
)
def test_what_can_not_be_promised_is_said_at_the_first_save_and_at_a_resume(
    make: Callable[[], Any], said: str, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "holdfast"):
        train(run_dir, make(), epochs=1, stop=3)
    assert [said in record.getMessage() for record in caplog.records].count(True) == 1
    caplog.clear()
    train(run_dir, make(), epochs=1)
    (record,) = [record for record in caplog.records if said in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert "resumes at batch 3" in record.getMessage()


@pytest.mark.parametrize(
    "make",
    [
        lambda: numbers(shuffle=True),
        lambda: DataLoader(range(SIZE), batch_sampler=[[1], [2], [3]]),  # type: ignore[arg-type]
        lambda: torchdata(shuffle=True),
        lambda: list(range(SIZE)),
    ],
    ids=["shuffle", "list", "torchdata", "plain list"],
)
def test_where_everything_is_covered_nothing_is_said(
    make: Callable[[], Any], run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "holdfast"):
        train(run_dir, make(), stop=2)
        train(run_dir, make())
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("told", [True, False])
def test_a_distributed_sampler_that_is_never_told_its_epoch_is_noticed(
    told: bool, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = DistributedSampler(range(SIZE), num_replicas=2, rank=1)  # type: ignore[arg-type]

    def each(loader: Any, epoch: int) -> None:
        if told:
            loader.sampler.set_epoch(epoch)

    seen = train(run_dir, numbers(sampler=sampler), epochs=2, each=each)
    assert (seen[0] == seen[1]) == (not told)
    assert ("its sampler is still set to epoch 0" in caplog.text) == (not told)


def test_an_order_that_only_the_sampler_knew_is_restored_when_it_says_so(run_dir: Path) -> None:
    """The note's way out: a state_dict of the sampler's own."""

    class Says(CountsInSecret):
        def state_dict(self) -> dict[str, int]:
            return {"rounds": self.rounds}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.rounds = state["rounds"]

    for kind, wanted in ((CountsInSecret, False), (Says, True)):
        whole = train(run_dir / f"{kind.__name__} whole", numbers(sampler=kind()))
        train(run_dir / kind.__name__, numbers(sampler=kind()), stop=8)
        rest = train(run_dir / kind.__name__, numbers(sampler=kind()))
        assert (rest[-1] == whole[-1]) == wanted


# -- what is refused, or taken with a word -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: DataLoader(range(SIZE), batch_size=3, shuffle=True), "batch_size was 4, is 3"),  # type: ignore[arg-type]
        (numbers, "class was RandomSampler, is SequentialSampler"),
        (lambda: DataLoader(range(30), batch_size=BATCH, shuffle=True), "length was 24, is 30"),  # type: ignore[arg-type]
        (lambda: torchdata(shuffle=True), "it has a state_dict, the other not"),
    ],
    ids=["batch size", "order", "more data", "torchdata"],
)
def test_another_loader_is_refused_inside_an_epoch_and_taken_with_a_word_between_two(
    other: Callable[[], Any], said: str, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(run_dir, numbers(shuffle=True), stop=9)
    with pytest.raises(MismatchError, match="its order would be another") as refused:
        train(run_dir, other())
    assert said in str(refused.value)
    rest = train(run_dir, other(), resume="@step=6")
    assert len(rest) == 2
    assert f"the loader is not the one that was saved: {said}" in caplog.text


def test_a_loader_with_a_place_of_its_own_is_not_replaced_by_one_without(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(run_dir, torchdata(shuffle=True), stop=9)
    with pytest.raises(MismatchError, match="it had a state_dict, the other not"):
        train(run_dir, numbers(shuffle=True))
    assert len(train(run_dir, numbers(shuffle=True), resume="@step=6")) == 2


def test_a_sampler_that_is_set_to_another_epoch_is_refused(run_dir: Path) -> None:
    def loader() -> Any:
        return numbers(sampler=DistributedSampler(range(SIZE), num_replicas=2, rank=0))  # type: ignore[arg-type]

    train(run_dir, loader(), stop=5, each=lambda loader, epoch: loader.sampler.set_epoch(epoch))
    with pytest.raises(MismatchError, match="epoch was 1, is 0: build and set it as before"):
        train(run_dir, loader())


def test_another_number_of_workers_is_refused_where_it_decides(run_dir: Path) -> None:
    train(run_dir / "stream", DataLoader(Stream(), batch_size=BATCH, num_workers=2), stop=1)
    with pytest.raises(MismatchError, match="num_workers was 2, is 1"):
        train(run_dir / "stream", DataLoader(Stream(), batch_size=BATCH, num_workers=1))
    train(run_dir / "order", numbers(num_workers=2), stop=1)
    assert train(run_dir / "order", numbers(), epochs=1) == [list(range(BATCH, SIZE))]
    train(run_dir / "torchdata", torchdata(num_workers=2), stop=3)
    with pytest.raises(MismatchError, match="does not take the place that was saved: AssertionError State doesn't"):
        train(run_dir / "torchdata", torchdata())


def test_generators_that_are_not_there_or_of_another_kind_are_refused(run_dir: Path) -> None:
    def loader(*found: Any) -> Any:
        data: Any = list(range(SIZE))
        made = DataLoader(data, batch_size=BATCH)
        for number, generator in enumerate(found):
            setattr(made.sampler, f"own{number}", generator)
        return made

    train(run_dir, loader(torch.Generator()), stop=3)
    with pytest.raises(MismatchError, match="1 generators were saved with it, it has 2"):
        train(run_dir, loader(torch.Generator(), torch.Generator()))
    with pytest.raises(MismatchError, match="a generator or sampler does not take the state that was saved"):
        train(run_dir, loader(np.random.default_rng()))


def test_fewer_items_than_were_done_are_refused(run_dir: Path) -> None:
    train(run_dir, iter(range(9)), stop=5)
    with pytest.raises(
        MismatchError, match=r"5 batches of this epoch were done when it was saved, but it ends after 3"
    ):
        train(run_dir, iter(range(3)))


# -- generators and streams --------------------------------------------------------------------------------------------


def test_a_new_generator_in_each_epoch_is_read_up_to_its_place(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stream(epoch: int) -> Iterator[int]:
        for number in range(6):
            yield 10 * epoch + number

    train(run_dir, stream, stop=7)
    assert train(run_dir, stream) == [[11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]]
    assert "is not the one that it was" not in caplog.text


def test_other_data_than_before_the_restart_is_said(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that goes on through the epochs can't be read again from its beginning by each of them."""

    def going_on() -> Callable[[int], Iterator[int]]:
        stream = itertools.count()
        return lambda epoch: itertools.islice(stream, 6)

    train(run_dir, going_on(), stop=8)
    assert train(run_dir, going_on())[0] == [2, 3, 4, 5]
    assert "item 2 of this epoch is not the one that it was before the restart" in caplog.text


@pytest.mark.parametrize(
    "item",
    [
        {"x": torch.ones(3, 4).t(), "y": [1.5, None, "a"]},
        (np.arange(6).reshape(2, 3), np.array(["a"]), b"raw", True),
        [torch.ones(2, dtype=torch.bfloat16), torch.ones(2, 2).to_sparse(), torch.tensor(3), torch.empty(0, 2)],
        [torch.ones(2, dtype=torch.complex64).conj(), torch.zeros(2000, 3)[::2], object()],
        np.array([object()]),
    ],
    ids=["mapping", "numpy", "odd tensors", "views", "objects"],
)
def test_items_of_every_kind_are_told_apart(item: Any, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    def one_pass(items: list[Any], stop: int | None) -> None:
        with holdfast.Run(run_dir, model=nn.Linear(1, 1), save="1step") as run:
            for done, _ in enumerate(run.batches(items)):
                if done == stop:
                    return

    one_pass([item, item, item], 1)
    one_pass([item, item, item], 0)
    assert "is not the one that it was" not in caplog.text
    one_pass([torch.zeros(1), item, item], 0)
    assert "item 1 of this epoch is not the one that it was" in caplog.text


def test_a_batch_that_is_changed_in_place_is_still_the_one_that_it_was(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for stop in (2, 9):
        with holdfast.Run(run_dir, model=nn.Linear(1, 1), save="1step") as run:
            for done, batch in enumerate(run.batches([{"x": torch.ones(2), "y": 1} for _ in range(4)])):
                batch.pop("y")
                batch["x"].zero_()
                if done == stop:
                    break
    assert "is not the one that it was" not in caplog.text


def test_an_iterator_that_was_read_is_refused_in_the_next_epoch(run_dir: Path) -> None:
    """A plain loop over it would see no items, without a word, in every epoch but the first."""
    with pytest.raises(ArgumentError, match="a zip can be read only once, and it was: give batches"):
        train(run_dir, zip(range(3), range(3), strict=True))


# -- several loaders -----------------------------------------------------------------------------------------------


def test_a_second_pass_in_one_epoch_is_refused(run_dir: Path) -> None:
    """Its items would count as steps, and a restart in it would look for its place in the first loader."""
    wanted = r"batches\(\) in the middle of epoch 0, with no saved place to go on from"
    for first in (lambda run: list(run.batches(range(3))), lambda run: next(run.batches(range(3)))):
        with holdfast.Run(run_dir, model=nn.Linear(1, 1), save="9ep") as run:
            first(run)
            with pytest.raises(ArgumentError, match=wanted):
                next(run.batches(range(5)))
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), save="9ep") as run:
        for _ in run.batches(range(3)):
            with pytest.raises(ArgumentError, match=wanted):
                list(run.batches(range(5)))


def test_a_loader_beside_the_one_of_the_run_is_refused(run_dir: Path) -> None:
    wanted = r"batches\(\) was given another loader than loader= of the run"
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), loader=[1, 2]) as run, pytest.raises(ArgumentError, match=wanted):
        next(run.batches([1, 2]))


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("stop", [3, 8, 13])
def test_the_loader_may_change_from_epoch_to_epoch(stop: int, run_dir: Path) -> None:
    def curriculum() -> Callable[[int], Any]:
        torch.manual_seed(1)
        easy, hard = numbers(shuffle=True), DataLoader(range(100, 120), batch_size=5, shuffle=True)  # type: ignore[arg-type]
        return lambda epoch: easy if epoch < 1 else hard

    whole = train(run_dir / "whole", curriculum())
    train(run_dir / "run", curriculum(), stop=stop)
    rest = train(run_dir / "run", curriculum())
    done = sum(len(epoch) for epoch in rest)
    assert [number for epoch in rest for number in epoch] == [number for epoch in whole for number in epoch][-done:]


def test_an_own_loop_gives_a_loader_with_state_as_an_object(run_dir: Path) -> None:
    seen = []
    for stop in (3, None):
        loader = torchdata(shuffle=True, generator=torch.Generator().manual_seed(1))
        with holdfast.Run(run_dir, model=nn.Linear(1, 1), data=loader) as run:
            at = run.resume()
            for step, batch in enumerate(loader, at.step if at else 0):
                if step == stop:
                    break
                seen += batch.tolist()
                run.save(step=step + 1)
    assert len(seen) == SIZE
    assert set(seen) == set(range(SIZE))


# -- random state ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("seeded")
def test_without_rng_a_resume_leaves_the_programs_random_state(run_dir: Path) -> None:
    """The order is still drawn again, from the state that it was drawn from."""
    torch.manual_seed(1)
    whole = train(run_dir / "whole", numbers(shuffle=True), epochs=1, rng=False)
    torch.manual_seed(1)
    train(run_dir / "run", numbers(shuffle=True), epochs=1, stop=2, rng=False)
    with holdfast.Run(run_dir / "run", model=nn.Linear(1, 1), rng=False) as run:
        before = torch.manual_seed(99).get_state()
        assert next(run.batches(numbers(shuffle=True))).tolist() == whole[0][2 * BATCH : 3 * BATCH]
        assert torch.equal(torch.get_rng_state(), before)


def test_a_save_before_the_first_item_does_not_draw(run_dir: Path) -> None:
    """To tell its place, a torchdata loader that has not begun would begin, and draw a seed for it."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader = torchdata(range(SIZE), generator=torch.Generator())
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), loader=loader) as run:
        before = torch.get_rng_state()
        run.save(step=0)
        assert torch.equal(torch.get_rng_state(), before)
    assert train(run_dir, torchdata(range(SIZE)), epochs=1) == [list(range(SIZE))]
