"""Fifty thousand small tensors, where only what is done for each of them counts: P5 of docs/promises.md.

    python benchmarks/many_tensors.py [--pairs 5]

State M is 50,000 tensors of 64 floats. Saving and loading through the page cache, both sides in turns, medians of the
rounds' ratios. ``ours, torch's .pt`` reads the file that torch.save wrote.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from save_restore import Work, measure, ratio
from states import many_tensors

import holdfast


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    tree = many_tensors()
    with tempfile.TemporaryDirectory() as name:
        torch_pt, peer, ours_pt, ours = (Path(name) / key for key in ("t.pt", "p.safetensors", "o.pt", "o.safetensors"))

        def gone(path: Path) -> Work:
            def prepare() -> None:
                path.unlink(missing_ok=True)
                os.sync()

            return prepare

        saved = measure(
            {
                "torch": (gone(torch_pt), lambda: torch.save(tree, torch_pt)),
                "safetensors": (gone(peer), lambda: save_file(tree, peer)),
                "ours .pt": (gone(ours_pt), lambda: holdfast.save(tree, ours_pt, durable=False)),
                "ours .safetensors": (gone(ours), lambda: holdfast.save(tree, ours, durable=False)),
            },
            args.pairs,
        )
        loaded = measure(
            {
                "torch": (lambda: None, lambda: torch.load(torch_pt)),
                "safetensors": (lambda: None, lambda: load_file(peer)),
                "ours .pt": (lambda: None, lambda: holdfast.load(ours_pt)),
                "ours .safetensors": (lambda: None, lambda: holdfast.load(ours)),
                "ours, torch's .pt": (lambda: None, lambda: holdfast.load(torch_pt)),
            },
            args.pairs,
        )
    table = Table(
        "what", "seconds", "ratio to torch", "ratio to safetensors", "promise", title="50,000 tensors of 64 floats"
    )
    for title, seconds, promise in (("save", saved, "<= 0.5x torch"), ("load", loaded, "<= 0.33x torch")):
        for key, values in seconds.items():
            table.add_row(
                f"{title}: {key}",
                f"{statistics.median(values):.2f}",
                f"{ratio(seconds, key, 'torch'):.2f}x",
                f"{ratio(seconds, key, 'safetensors'):.2f}x",
                promise if key.startswith("ours") else "",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
