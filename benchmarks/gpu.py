"""Saving from and restoring into an accelerator: P10 of docs/promises.md.

    python benchmarks/gpu.py [--pairs 5] [--layers 12] [--folder DIR]

GPT-2 with its AdamW moments on the accelerator of this machine; without one it says so and ends. Rounds in turns,
medians, the device synchronized before and after what is timed. ``drain`` is the copies of a background save, from the
first to the last byte in pinned memory, beside one copy of as many bytes in one piece. ``peak`` is what a row takes of
the device's memory above what is taken already. What was restored is compared with what was saved, bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from states import GPT2

import holdfast
from holdfast.serialization.side_stream import SideStream, pinned_memory
from holdfast.training.snapshots.staging import Staging

Row = tuple[str, str, str, str, str]


class Bench:
    """A model and its optimizer on a device.

    Args:
        device: which.
        api: its part of torch, such as ``torch.cuda``.
        folder: where files go.
        pairs: rounds that count.
        layers: of the model.
    """

    def __init__(self, device: torch.device, api: Any, folder: Path, *, pairs: int, layers: int) -> None:
        self.device, self.api, self.folder, self.pairs = device, api, folder, pairs
        self.net = GPT2(layers).to(device)
        self.optimizer = torch.optim.AdamW(self.net.parameters())
        for parameter in self.net.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        self.optimizer.step()
        self.size = sum(tensor.nbytes for tensor in self.tensors())

    def state(self) -> dict[str, Any]:
        return {"model": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> list[torch.Tensor]:
        """All that lies on the device."""
        moments = (value for values in self.optimizer.state.values() for value in values.values())
        return [tensor.detach() for tensor in (*self.net.parameters(), *moments) if tensor.device == self.device]

    def timed(self, work: Callable[[], object]) -> float:
        self.api.synchronize(self.device)
        begin = time.perf_counter()
        work()
        self.api.synchronize(self.device)
        return time.perf_counter() - begin

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes of the device above what is taken already."""
        self.api.synchronize(self.device)
        before = self.api.memory_allocated(self.device)
        self.api.reset_peak_memory_stats(self.device)
        work()
        self.api.synchronize(self.device)
        return int(self.api.max_memory_allocated(self.device)) - before

    def in_turns(self, rows: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(self.pairs + 1):  # the first round warms memory and page cache, and is not counted
            for name, work in rows.items():
                took = self.timed(work)
                if number:
                    seconds[name].append(took)
        return seconds


def saves(bench: Bench) -> list[Row]:
    """How long the program waits for a save."""
    calls, fences, peaks = [], [], []
    with holdfast.Run(
        bench.folder / "run", model=bench.net, optimizer=bench.optimizer, background=True, keep="last:1"
    ) as run:
        for number in range(1, bench.pairs + 3):
            bench.api.synchronize(bench.device)

            def save(number: int = number) -> None:
                start = time.perf_counter()
                saved = run.save(step=number)
                calls.append(time.perf_counter() - start)
                bench.optimizer.step()
                saved.wait()
                fences.append(saved.stall - calls[-1])

            peaks.append(bench.peak(save))
    whole = bench.in_turns({"torch.save": lambda: torch.save(bench.state(), bench.folder / "t.pt")})["torch.save"]
    return [  # the first two saves make the pinned memory
        (
            "run.save() returns",
            f"{1e3 * statistics.median(calls[2:]):.1f} ms",
            "",
            megabytes(max(peaks[2:])),
            "<= 2 ms",
        ),
        ("before the next step", f"{1e3 * statistics.median(fences[2:]):.1f} ms", "", "", ""),
        ("torch.save returns", f"{1e3 * statistics.median(whole):.1f} ms", "", "", ""),
    ]


def drains(bench: Bench, memory: Callable[[int], memoryview] = pinned_memory) -> list[Row]:
    """The copies of a background save beside one copy of the same size."""
    stream, staging, tensors = SideStream(bench.device, bench.api), Staging(memory), bench.tensors()
    whole = torch.empty(bench.size, dtype=torch.uint8, device=bench.device)
    target = torch.frombuffer(memory(bench.size), dtype=torch.uint8)

    def drain() -> None:
        staging.give_back()
        stream.begin()
        for tensor in tensors:
            stream.copy_out(tensor, staging.take(tensor.nbytes))
        stream.mark().synchronize()

    seconds = bench.in_turns({"drain": drain, "probe": lambda: target.copy_(whole, non_blocking=True)})
    share = statistics.median(probe / ours for ours, probe in zip(seconds["drain"], seconds["probe"], strict=True))
    return [
        ("drain: one pinned copy", rate(bench, seconds["probe"]), "1.00x", "", ""),
        ("drain: ours", rate(bench, seconds["drain"]), f"{share:.2f}x", "", ">= 0.9x the probe"),
    ]


def restores(bench: Bench) -> list[Row]:
    """Files into live tensors of the device."""
    folder, state = bench.folder, {"model": bench.net, "optimizer": bench.optimizer}
    torch.save(bench.state(), folder / "torch.pt")
    holdfast.save(state, folder / "ours.pt")
    holdfast.save(state, folder / "ours.safetensors")
    wanted = [tensor.cpu() for tensor in bench.tensors()]

    def torch_load() -> None:
        loaded = torch.load(folder / "torch.pt", map_location=bench.device)
        bench.net.load_state_dict(loaded["model"])
        bench.optimizer.load_state_dict(loaded["optimizer"])

    def restore(name: str) -> Callable[[], object]:
        return lambda: holdfast.restore(folder / name, model=bench.net, optimizer=bench.optimizer)

    ways = {
        "torch.load": torch_load,
        "ours .pt": restore("ours.pt"),
        "ours .safetensors": restore("ours.safetensors"),
        "ours, torch's .pt": restore("torch.pt"),
    }
    seconds = bench.in_turns(ways)
    peaks = {name: bench.peak(work) for name, work in ways.items()}
    for name, work in ways.items():
        for tensor in bench.tensors():
            tensor.zero_()
        work()
        if not all(torch.equal(tensor.cpu(), old) for tensor, old in zip(bench.tensors(), wanted, strict=True)):
            raise SystemExit(f"{name}: what was restored is not what was saved")
    rows = []
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["torch.load"], strict=True))
        promise = "<= 0.25x torch" if name.startswith("ours") else ""
        rows.append((f"restore: {name}", rate(bench, seconds[name]), f"{ratio:.2f}x", megabytes(peaks[name]), promise))
    return rows


def milliseconds(seconds: list[float]) -> str:
    """The median, for the table."""
    return f"{1e3 * statistics.median(seconds):.1f} ms"


def rate(bench: Bench, seconds: list[float]) -> str:
    """The median and its bytes a second, for the table."""
    middle = statistics.median(seconds)
    return f"{middle:.3f} s, {bench.size / middle / 1e9:.1f} GB/s"


def megabytes(size: int) -> str:
    """Bytes, for the table."""
    return f"{size / 1e6:.0f} MB"


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12, help="of the model; fewer for a quick look")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a folder of the system by default")
    args = parser.parse_args()
    if not torch.accelerator.is_available():
        print("no GPU here")
        return
    device = torch.empty(0, device=torch.accelerator.current_accelerator()).device  # with its number
    api = torch.get_device_module(device)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        bench = Bench(device, api, Path(name), pairs=args.pairs, layers=args.layers)
        table = Table("what", "time", "ratio to the first", "peak", "promise", title=f"{bench.size:,} bytes")
        for row in (*saves(bench), *drains(bench), *restores(bench)):
            table.add_row(*row)
    console = Console(width=130)
    console.print(table)
    console.print(f"{device}, {getattr(api, 'get_device_name', str)(device)}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
