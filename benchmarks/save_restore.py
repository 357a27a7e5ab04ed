"""Saving and restoring GPT-2 with its AdamW moments: P1 and P2 of docs/promises.md.

    python benchmarks/save_restore.py [--pairs 5] [--folder DIR]

The state is 1.49 GB in 438 tensors and more. Every row is measured side by side with its peers in one run: one round
of each after the other, ``--pairs`` rounds, medians. Destinations are removed first; both sides write through the page
cache (``durable=False``, as torch.save does), and on both sides all bytes are read on loading. Our side always digests
and verifies.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from states import gpt2_with_moments

import holdfast

Work = Callable[[], object]


def measure(rows: dict[str, tuple[Work, Work]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each row in each round; (prepare, work) pairs, only the work is timed."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):  # the first round warms memory and page cache, and is not counted
        for name, (prepare, work) in rows.items():
            gc.collect()
            prepare()
            begin = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, peer: str) -> float:
    """The median of the rounds' ratios: both sides of a round ran right after each other."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True))


def raw_write(path: Path, blocks: list[memoryview]) -> None:
    """The machine's limit for writing: the same bytes with plain pwrite into a preallocated file, no digest."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        size = sum(block.nbytes for block in blocks)
        os.posix_fallocate(fd, 0, size)
        offset = 0
        for block in blocks:
            done = 0
            while done < block.nbytes:
                done += os.pwrite(fd, block[done : done + (1 << 20)], offset + done)
            offset += done
    finally:
        os.close(fd)


def peak(code: str, folder: Path) -> float:
    """MB of resident memory above its state that a piece of our side needs, in a process of its own."""
    script = (
        "import re, sys; sys.path.insert(0, sys.argv[2]); import torch, holdfast\n"
        "from states import gpt2_with_moments\n"
        "net, opt = gpt2_with_moments()\n"
        "holdfast.save({'x': torch.ones(3)}, sys.argv[1] + '/warm.pt'); holdfast.load(sys.argv[1] + '/warm.pt')\n"
        "status = lambda key: int(re.search(key + r':\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "open('/proc/self/clear_refs', 'w').write('5')  # the high-water mark begins here\n"
        "before = status('VmRSS')\n"
        f"{code}\n"
        "print((status('VmHWM') - before) / 1024)"
    )
    command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a folder of the system by default")
    args = parser.parse_args()
    net, optimizer = gpt2_with_moments()
    tree = {"model": net, "optimizer": optimizer}
    flat = {f"model.{name}": value for name, value in net.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        flat |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    blocks = [memoryview(tensor.contiguous().numpy()).cast("B") for tensor in flat.values() if tensor.dim()]
    size = sum(tensor.nbytes for tensor in flat.values())

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        file = {key: folder / key for key in ("torch.pt", "peer.safetensors", "ours.pt", "ours.safetensors", "raw")}

        def gone(key: str) -> Work:
            def prepare() -> None:
                file[key].unlink(missing_ok=True)
                os.sync()  # what the row before left to the disk must not be this row's wait

            return prepare

        def torch_load(**options: object) -> None:
            loaded = torch.load(file["torch.pt"], **options)
            net.load_state_dict(loaded["model"])
            optimizer.load_state_dict(loaded["optimizer"])
            for values in optimizer.state.values():  # mapped pages are read when they are touched
                for value in values.values():
                    value.reshape(-1)[::1024].sum()

        def peer_load() -> None:
            loaded = load_file(file["peer.safetensors"])
            net.load_state_dict({name: loaded[f"model.{name}"] for name in net.state_dict()})
            for index, values in optimizer.state_dict()["state"].items():
                for key, value in values.items():
                    value.copy_(loaded[f"optimizer.{index}.{key}"])

        def plain() -> dict[str, object]:
            return {"model": net.state_dict(), "optimizer": optimizer.state_dict()}

        saving: dict[str, tuple[Work, Work]] = {
            "raw pwrite": (gone("raw"), lambda: raw_write(file["raw"], blocks)),
            "torch.save": (gone("torch.pt"), lambda: torch.save(plain(), file["torch.pt"])),
            "safetensors": (gone("peer.safetensors"), lambda: save_file(flat, file["peer.safetensors"])),
            "ours .pt": (gone("ours.pt"), lambda: holdfast.save(tree, file["ours.pt"], durable=False)),
            "ours .safetensors": (
                gone("ours.safetensors"),
                lambda: holdfast.save(tree, file["ours.safetensors"], durable=False),
            ),
        }
        saved = measure(saving, args.pairs)
        loading: dict[str, tuple[Work, Work]] = {
            "torch.load": (lambda: None, torch_load),
            "torch.load mmap": (lambda: None, lambda: torch_load(mmap=True)),
            "safetensors": (lambda: None, peer_load),
            "ours .pt": (lambda: None, lambda: holdfast.restore(file["ours.pt"], model=net, optimizer=optimizer)),
            "ours .safetensors": (
                lambda: None,
                lambda: holdfast.restore(file["ours.safetensors"], model=net, optimizer=optimizer),
            ),
            "ours, torch's .pt": (
                lambda: None,
                lambda: holdfast.restore(file["torch.pt"], model=net, optimizer=optimizer),
            ),
        }
        loaded = measure(loading, args.pairs)
        memory = {
            "save": peak("holdfast.save({'model': net, 'optimizer': opt}, sys.argv[1] + '/m.pt')", folder),
            "restore": peak("holdfast.restore(sys.argv[1] + '/m.pt', model=net, optimizer=opt)", folder),
        }

    table = Table(
        "what", "seconds", "GB/s", "ratio to torch", "ratio to safetensors", "promise", title=f"{size:,} bytes"
    )
    promises = {"ours .pt": "<= 0.5x torch", "ours .safetensors": "<= 0.33x torch, <= 0.8x safetensors"}
    for title, seconds, base in (("save", saved, "torch.save"), ("restore", loaded, "torch.load")):
        for key in seconds:
            promise = promises.get(key, "") if title == "save" else "<= 0.2x torch, <= 0.7x safetensors"
            table.add_row(
                f"{title}: {key}",
                f"{statistics.median(seconds[key]):.2f}",
                f"{size / statistics.median(seconds[key]) / 1e9:.1f}",
                f"{ratio(seconds, key, base):.2f}x",
                f"{ratio(seconds, key, 'safetensors'):.2f}x",
                promise if key.startswith("ours") else "",
            )
    console = Console(width=130)
    console.print(table)
    console.print(
        f"memory above the state: save {memory['save']:.0f} MB, restore {memory['restore']:.0f} MB (P9: <= 64 MB)"
    )
    console.print(f"torch {torch.__version__}, {os.cpu_count()} cores, {resource.getpagesize()} byte pages")


if __name__ == "__main__":
    main()
