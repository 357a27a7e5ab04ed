"""What a save costs the training that goes on: P3, P4, P6 and the staging of P9 of docs/promises.md.

    python benchmarks/training.py [--pairs 5] [--steps 8] [--layers 12] [--folder DIR]

The state is GPT-2 124M with its AdamW moments, 1.49 GB; a step is a forward pass, a backward pass and an AdamW step on
all cores. Added time is that of a window of ``--steps`` steps with one save after the first, durable on every side when
the window ends, less as many median steps of the same window, most of which see no save. The rows of a round run one
after the other, ``--pairs`` rounds, medians. Every side writes beside its target, fsyncs, renames, fsyncs the folder;
ours digests as always.
"""

from __future__ import annotations

import concurrent.futures
import gc
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from states import GPT2, gpt2
from table import Row, at_most, finish, parser, promise, ratio
from torch import nn

import holdfast

Finish = Callable[[], object]
CLONE = "clone, then torch.save in a thread"


class Training:
    """A model in training."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(0)
        self.net = GPT2(layers)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-5)
        self.words = torch.randint(0, 50257, (64,))
        self.step()

    def step(self) -> None:
        """Every parameter gets a gradient and moves."""
        net = self.net
        flow = net.wte(self.words) + net.wpe.weight[:64]
        for block in net.h:
            flow = flow + block.c_proj(block.c_attn(block.ln_1(flow))[:, : flow.shape[1]])
            flow = flow + block.mlp_proj(torch.relu(block.mlp_fc(block.ln_2(flow))))
        self.optimizer.zero_grad()
        (net.ln_f(flow) @ net.wte.weight[:2048].t()).logsumexp(1).mean().backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}


def durable_torch_save(state: Any, path: Path) -> None:
    """torch.save as someone writes it who does not want to lose the file."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def cloned(tree: Any) -> Any:
    """A copy of all tensors, as background savers of training frameworks make it."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: cloned(value) for key, value in tree.items()}
    return [cloned(item) for item in tree] if isinstance(tree, list) else tree


class Savers:
    """Each way to save: called at a step, it returns what waits until the state is on the disk."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.thread = concurrent.futures.ThreadPoolExecutor(1)
        self.runs = {
            how: holdfast.Run(
                folder / f"run-{number}",
                model=training.net,
                optimizer=training.optimizer,
                background=how,
                keep="last:1",
            )
            for number, how in enumerate((False, True, "copy"))
        }
        self.count = 0

    def torch_save(self) -> Finish:
        durable_torch_save(self.training.state(), self.folder / "torch.pt")
        return lambda: None

    def clone_and_thread(self) -> Finish:
        state = cloned(self.training.state())
        return self.thread.submit(durable_torch_save, state, self.folder / "clone.pt").result

    def dcp_async(self) -> Finish:
        shutil.rmtree(self.folder / "dcp", ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcp.async_save(self.training.state(), checkpoint_id=self.folder / "dcp").result

    def ours(self, how: bool | str) -> Callable[[], Finish]:
        def save() -> Finish:
            self.count += 1
            return self.runs[how].save(step=self.count).wait

        return save


def window(training: Training, steps: int, save: Callable[[], Finish]) -> tuple[float, float, list[float]]:
    """Seconds of a window of steps with one save after the first; of the call; and of each step."""
    gc.collect()
    os.sync()
    stall, each = 0.0, []
    finish: Finish = lambda: None  # noqa: E731
    begin = time.perf_counter()
    for number in range(steps):
        start = time.perf_counter()
        training.step()
        each.append(time.perf_counter() - start)
        if number == 0:
            start = time.perf_counter()
            finish = save()
            stall = time.perf_counter() - start
    finish()
    return time.perf_counter() - begin, stall, each


def added_time(training: Training, folder: Path, steps: int, pairs: int) -> list[Row]:
    """Rows of P3, and of P4 at full size."""
    savers = Savers(training, folder)
    ways = {
        "torch.save": savers.torch_save,
        CLONE: savers.clone_and_thread,
        "DCP async_save": savers.dcp_async,
        "ours, in the foreground": savers.ours(False),
        "ours, background=True": savers.ours(True),
        "ours, background='copy'": savers.ours("copy"),
    }
    usual: list[float] = []
    added: dict[str, list[float]] = {name: [] for name in ways}
    stalls: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(pairs + 1):  # the first round warms memory and page cache, and is not counted
        for name, save in ways.items():
            total, stall, each = window(training, steps, save)
            if number:
                usual.append(statistics.median(each))
                added[name].append(total - steps * usual[-1])
                stalls[name].append(stall)
    staging = savers.runs[True]._commits._saver._staging.size
    for run in savers.runs.values():
        run.close()
    best = [min(pair) for pair in zip(added[CLONE], added["DCP async_save"], strict=True)]
    compared = {**added, "best": best}
    rows = []
    for name in ways:
        row = Row(f"added by {name}", statistics.median(added[name]))
        row.ratios = {"torch": ratio(compared, name, "torch.save"), "best async peer": ratio(compared, name, "best")}
        row.note = f"the call takes {1e3 * statistics.median(stalls[name]):.1f} ms"
        rows.append(row)
        if name == "ours, background=True":
            promise(row, "P3", **{"torch": 0.25, "best async peer": 0.5})
    rows.append(Row("a step", statistics.median(usual)))
    kept = Row("staging that a background save keeps", staging / 1e6, "MB")
    at_most(kept, "P9", round(sum(tensor.nbytes for tensor in _tensors(training.state())) / 1e6))
    return [*rows, kept]


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def stalls(folder: Path, pairs: int, layers: int) -> list[Row]:
    """Rows of P4: the call of run.save at several sizes, and a clone of the same state."""
    rows = []
    for part in sorted({1, layers // 2, layers} - {0}):
        live = gpt2(part)
        net, optimizer, state = live.net, live.optimizer, live.tree
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        size = sum(value.nbytes for value in net.state_dict().values()) * 3
        calls, fences, clones = [], [], []
        with holdfast.Run(
            folder / f"stall-{part}", model=net, optimizer=optimizer, background=True, keep="last:1"
        ) as run:
            for number in range(1, 4 * pairs + 3):
                start = time.perf_counter()
                saved = run.save(step=number)
                called = time.perf_counter() - start
                optimizer.step()
                saved.wait()
                if number > 2:
                    calls.append(called)
                    fences.append(saved.stall - called)
        for _ in range(pairs):
            start = time.perf_counter()
            cloned(state)
            clones.append(time.perf_counter() - start)
        row = Row(f"the call of run.save, {size / 1e9:.2f} GB", 1e3 * statistics.median(calls), "ms")
        row.ratios = {"a clone": statistics.median(calls) / statistics.median(clones)}
        row.note = f"at most {1e3 * max(calls):.1f}; copied before the step: {1e3 * statistics.median(fences):.0f} ms"
        at_most(row, "P4", 10)
        rows.append(row)
    return rows


def frozen(folder: Path, pairs: int, layers: int) -> list[Row]:
    """Rows of P6: a state of which all but one percent is frozen, saved again."""
    net = GPT2(layers)
    bulk = nn.ParameterList(nn.Parameter(torch.randn(1 << 20), requires_grad=False) for _ in range(235 * layers // 12))
    head = nn.Linear(768, 768)
    model = nn.ModuleDict({"net": net.requires_grad_(False), "bulk": bulk, "head": head})
    optimizer = torch.optim.AdamW(head.parameters())
    size = sum(value.nbytes for value in model.state_dict().values())
    again, torchs, written = [], [], []
    with holdfast.Run(folder / "frozen", model=model, optimizer=optimizer, keep="last:2") as run:
        for number in range(pairs + 3):  # the first two are written whole
            head(torch.randn(4, 768)).square().mean().backward()
            optimizer.step()
            moving = sum(p.nbytes for p in head.parameters()) * 3
            os.sync()
            saved = run.save(step=number)
            os.sync()
            start = time.perf_counter()
            durable_torch_save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "frozen.pt")
            seconds = time.perf_counter() - start
            if number > 2:
                again.append(saved.seconds)
                torchs.append(seconds)
                written.append(saved.changed / moving)
    title = f"{size / 1e9:.2f} GB, 99 % frozen"
    row = Row(f"saved again, ours: {title}", statistics.median(again))
    row.ratios = {"torch": ratio({"ours": again, "torch": torchs}, "ours", "torch")}
    promise(row, "P6", torch=0.1)
    changed = Row("written, to the bytes that changed", statistics.median(written), "x")
    at_most(changed, "P6", 1.05)
    return [Row(f"saved again, torch.save: {title}", statistics.median(torchs)), row, changed]


def main() -> None:
    """Measures and prints one table."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--layers", type=int, default=12, help="of the model; fewer for a quick look")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        rows = []
        rows += added_time(Training(args.layers), folder, args.steps, args.pairs)
        gc.collect()
        rows += stalls(folder, args.pairs, args.layers)
        gc.collect()
        rows += frozen(folder, args.pairs, args.layers)
        dist.destroy_process_group()
    finish(args, "A save while training", rows, ["No GPU was used."])


if __name__ == "__main__":
    main()
