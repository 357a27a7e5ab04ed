"""Writes the model of digits.py six ways, reads the held-out digits with each file, and prints one table.

    python examples/export_digits.py [REF] [--into FOLDER]

REF is a checkpoint of digits.py, as in runs/digits@best; without it a model is trained for a few seconds. The files are
one of holdfast itself, three for other runtimes and two of int8: those are calibrated with digits of the training part.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import digits
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

import holdfast

Reader = Callable[[Tensor], Tensor]
"""Images of shape (n, 1, 8, 8) to scores of shape (n, 10)."""

TRIES = 20
"""Each file reads the test set so often; the fastest counts."""


class Read(NamedTuple):
    """How one file read the test set: the scores, shape (n, 10), and the seconds that it took."""

    what: str
    file: Path
    scores: Tensor
    seconds: float


def trained(folder: Path) -> str:
    """Trains a run of four epochs, as digits.py does, and returns the reference of its best model."""
    run_dir = folder / "run"
    options = {"epochs": 4, "lr": 2e-3, "seed": 0, "save": "1ep", "background": False, "log": None}
    digits.train(argparse.Namespace(run_dir=str(run_dir), **options))
    return f"{run_dir}@best"


def write(ref: str, folder: Path) -> dict[str, Path]:
    """Writes the model of a reference into ``folder``, once for each row of the table."""
    images = digits.digits()[0].tensors[0]
    example, dynamic = images[:2], {"images": {0: "batch"}}
    files = {
        "holdfast.save": folder / "digits.pt",
        "TorchScript": folder / "digits.ts",
        "ONNX": folder / "digits.onnx",
        "torch.export": folder / "digits.pt2",
        "dynamic-int8": folder / "digits-dynamic-int8.pt",
        "static-int8": folder / "digits-static-int8.pt",
    }
    holdfast.save(holdfast.build(ref, factory=digits.Net), files["holdfast.save"])
    # Each is compared with the model on fresh inputs by a process of its own, and only then put in its place.
    holdfast.export(ref, files["TorchScript"], factory=digits.Net, example=example, dynamic=dynamic)
    holdfast.export(ref, files["torch.export"], factory=digits.Net, example=example, dynamic=dynamic)
    names = {"input_names": ["images"], "output_names": ["scores"]}
    holdfast.export(ref, files["ONNX"], factory=digits.Net, example=example, dynamic=dynamic, **names)

    smaller = holdfast.quantize(ref, "dynamic-int8", factory=digits.Net, example=example)
    holdfast.save(smaller, files["dynamic-int8"])
    batches = DataLoader(digits.digits()[0], batch_size=100)
    smaller = holdfast.quantize(ref, "static-int8", factory=digits.Net, calibration=batches)
    holdfast.save(smaller, files["static-int8"])
    return files


def reader(file: Path) -> Reader:
    """A file as a function, made of nothing but the file and, where it holds weights alone, the class."""
    if file.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])
    if file.suffix == ".ts":
        return holdfast.build(file, trusted={"torch.jit.ScriptModule"})
    if file.suffix == ".pt2":
        return holdfast.build(file)
    return holdfast.build(file, factory=digits.Net)


@torch.no_grad()
def read(what: str, file: Path, images: Tensor) -> Read:
    """Lets one file read all images, a few times."""
    scores_of = reader(file)
    taken = []
    for _ in range(TRIES):
        start = time.perf_counter()
        scores = scores_of(images)
        taken.append(time.perf_counter() - start)
    return Read(what, file, scores, min(taken))


def table(rows: list[Read], labels: Tensor) -> Table:
    """All files side by side; the first is the float model that the others are compared with."""
    columns = ("written by", "file", "bytes", "read correctly", "same digit as float", "worst score off", "seconds")
    shown = Table(title=f"{len(labels)} held-out digits, one thread")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number < 2 else "right")
    ours = rows[0].scores
    for row in rows:
        guess = row.scores.argmax(dim=1)
        shown.add_row(
            row.what,
            row.file.name,
            f"{row.file.stat().st_size:,}",
            f"{(guess == labels).float().mean().item():.1%}",
            f"{(guess == ours.argmax(dim=1)).sum().item()} of {len(labels)}",
            f"{(row.scores - ours).abs().max().item():.1e}",
            f"{row.seconds:.4f}",
        )
    return shown


def main() -> None:
    """Writes, reads and compares, in a folder that is thrown away unless one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref", nargs="?", metavar="REF", help="a checkpoint of digits.py: runs/digits@best")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="where to leave the files")
    args = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory(prefix="holdfast-export-") as name:
        folder = args.into or Path(name)
        ref = args.ref or trained(Path(name))
        images, labels = digits.digits()[2].tensors
        rows = [read(what, file, images) for what, file in write(ref, folder).items()]
        Console().print(table(rows, labels))


if __name__ == "__main__":
    main()
