"""What a save costs the training that goes on: P3, P4, P6 and the staging of P9 of docs/promises.md.

    python benchmarks/training.py [--pairs 5] [--steps 8] [--layers 12] [--folder DIR]

The state is GPT-2 124M with its AdamW moments, 1.49 GB; a step is a forward pass, a backward pass and an AdamW step on
all cores. Added time is that of a window of ``--steps`` steps with one save at its beginning, durable on every side
when the window ends, less as many median steps without one. The rows of a round run one after the other, ``--pairs``
rounds, medians. Every side writes beside its target, fsyncs, renames and fsyncs the folder; ours digests as always.
"""

from __future__ import annotations

import argparse
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
from rich.console import Console
from rich.table import Table
from states import GPT2
from torch import nn

import holdfast

Finish = Callable[[], object]


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


def window(training: Training, steps: int, save: Callable[[], Finish] | None) -> tuple[float, float, list[float]]:
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
        if number == 0 and save is not None:
            start = time.perf_counter()
            finish = save()
            stall = time.perf_counter() - start
    finish()
    return time.perf_counter() - begin, stall, each


def added_time(training: Training, folder: Path, steps: int, pairs: int) -> list[tuple[str, ...]]:
    """Rows of P3, and of P4 at full size."""
    savers = Savers(training, folder)
    ways = {
        "torch.save": savers.torch_save,
        "clone, then torch.save in a thread": savers.clone_and_thread,
        "DCP async_save": savers.dcp_async,
        "ours, in the foreground": savers.ours(False),
        "ours, background=True": savers.ours(True),
        "ours, background='copy'": savers.ours("copy"),
    }
    plain: list[float] = []
    added: dict[str, list[float]] = {name: [] for name in ways}
    stalls: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(pairs + 1):  # the first round warms memory and page cache, and is not counted
        plain += window(training, steps, None)[2]
        base = statistics.median(plain) * steps
        for name, save in ways.items():
            total, stall, _ = window(training, steps, save)
            if number:
                added[name].append(total - base)
                stalls[name].append(stall)
    staging = savers.runs[True]._commits._saver._staging.size
    for run in savers.runs.values():
        run.close()
    rows = []
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(added[name], added["torch.save"], strict=True))
        best = statistics.median(
            a / min(b, c)
            for a, b, c in zip(
                added[name], added["clone, then torch.save in a thread"], added["DCP async_save"], strict=True
            )
        )
        promise = "<= 0.25x torch, <= 0.5x async" if name == "ours, background=True" else ""
        call = f"{1e3 * statistics.median(stalls[name]):.1f}"
        rows.append((name, f"{statistics.median(added[name]):.2f}", f"{ratio:.2f}x", f"{best:.2f}x", call, promise))
    rows.append((f"a step takes {statistics.median(plain):.2f} s; staging {staging / 1e6:.0f} MB", "", "", "", "", ""))
    return rows


def stalls(folder: Path, pairs: int) -> list[tuple[str, ...]]:
    """Rows of P4: the call of run.save at several sizes, and a clone of the same state."""
    rows = []
    for layers, words in ((1, 5_000), (6, 25_000), (12, 50_257)):
        net = GPT2(layers, words=words)
        optimizer = torch.optim.AdamW(net.parameters())
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        optimizer.step()
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
        size = sum(value.nbytes for value in net.state_dict().values()) * 3
        calls, fences, clones = [], [], []
        with holdfast.Run(
            folder / f"stall-{layers}", model=net, optimizer=optimizer, background=True, keep="last:1"
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
        rows.append(
            (
                f"{size / 1e9:.2f} GB",
                f"{1e3 * statistics.median(calls):.1f}",
                f"{1e3 * max(calls):.1f}",
                f"{1e3 * statistics.median(fences):.0f}",
                f"{1e3 * statistics.median(clones):.0f}",
                "<= 10 ms, at any size",
            )
        )
    return rows


def frozen(folder: Path, pairs: int, layers: int) -> list[tuple[str, ...]]:
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
    ratio = statistics.median(a / b for a, b in zip(again, torchs, strict=True))
    return [
        ("torch.save", f"{size / 1e9:.2f}", f"{statistics.median(torchs):.2f}", "1.00x", "", ""),
        (
            "ours, again",
            f"{size / 1e9:.2f}",
            f"{statistics.median(again):.3f}",
            f"{ratio:.3f}x",
            f"{statistics.median(written):.3f}x",
            "<= 0.1x the time, <= 1.05x the changed bytes",
        ),
    ]


def main() -> None:
    """Measures and prints one table for each promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="of the model; fewer for a quick look")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a folder of the system by default")
    args = parser.parse_args()
    console = Console(width=150)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        table = Table(
            "P3: a save while training", "added s", "to torch.save", "to the best async peer", "call ms", "promise"
        )
        for row in added_time(Training(args.layers), folder, args.steps, args.pairs):
            table.add_row(*row)
        console.print(table)
        gc.collect()
        table = Table("P4: state", "call ms, p50", "max", "copy before the step ms", "a clone ms", "promise")
        for row in stalls(folder, args.pairs):
            table.add_row(*row)
        console.print(table)
        gc.collect()
        table = Table("P6: 99 % frozen", "GB", "seconds", "to torch.save", "written to what moved", "promise")
        for row in frozen(folder, args.pairs, args.layers):
            table.add_row(*row)
        console.print(table)
        dist.destroy_process_group()
    console.print(f"torch {torch.__version__}, {os.cpu_count()} cores; no GPU was used")


if __name__ == "__main__":
    main()
