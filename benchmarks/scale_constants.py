"""The measured constants of benchmarks/scale.py: what an entry of a sharded checkpoint costs, and an upload's reading.

    python benchmarks/scale_constants.py [--ranks 256] [--tensors 400]

Makes a checkpoint of that many pieces, of eight bytes each, and opens it. Nothing is sent. Prints one line a constant.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec

from holdfast.formats.base import Document
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.entries import _EntriesFile
from holdfast.runs.layout import ENTRIES, MANIFEST, step_name
from holdfast.runs.manifest import FileRecord, Manifest
from holdfast.runs.placing import Stored
from holdfast.spec import TensorSpec
from holdfast.storage.atomic import StagedFolder
from holdfast.storage.digest import chunk_digests, digest_bytes
from holdfast.storage.remote.upload import StagedObject
from holdfast.storage.requests import WriteRequest

try:
    from holdfast.distributed.planning import Claim, deal
    from holdfast.runs.sharded import Piece, RankPart, Wanted, box_text, rank_file, write_sharded
    from holdfast.storage.joined import file_in_partial
except ImportError as error:
    raise SystemExit(f"this holdfast writes no sharded checkpoints: {error}") from None

PIECE = 8
UPLOAD = 256 << 20


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gave."""
    begin = time.perf_counter()
    given = work()
    return time.perf_counter() - begin, given


def key(number: int) -> str:
    """The name of a tensor."""
    return f"model.layers.{number}.self_attn.q_proj.weight"


def written(partial: str, ranks: int, tensors: int) -> list[RankPart]:
    """What each rank says after it wrote its container: a row of each tensor."""
    parts = []
    for rank in range(ranks):
        data = b"".join((rank * tensors + number).to_bytes(PIECE) for number in range(tensors))
        file, box = rank_file(rank), box_text((rank, 0), (1, 2))
        with file_in_partial(partial, file, durable=False) as staged:
            staged.write([WriteRequest(0, data)])
        pieces = tuple(
            Piece(
                key(number),
                file,
                f"{key(number)}[{box}]",
                (1, 2),
                (rank, 0),
                Stored(at, PIECE, chunk_digests(data[at : at + PIECE])),
            )
            for number, at in enumerate(range(0, len(data), PIECE))
        )
        parts.append(RankPart(file, FileRecord(len(data), digest_bytes(b""), 0), pieces))
    return parts


def of_entries(root: str, ranks: int, tensors: int) -> dict[str, float]:
    """Constants of a piece and of an entry, by the names that ``Measured`` has for them."""
    count = ranks * tensors
    folder = StagedFolder(root, step_name(1))
    parts = written(folder.partial, ranks, tensors)
    claims = [[Claim(one.key, one.offsets, PIECE, True) for one in part.pieces] for part in parts]
    told = [pickle.dumps(one) for one in (*claims, *parts)]
    hearing, _ = timed(lambda: [pickle.loads(one) for one in told])  # noqa: S301 - of this process
    dealing, _ = timed(lambda: deal(claims))
    tree = {key(number): Wanted(key(number), TensorSpec("float32", (ranks, 2))) for number in range(tensors)}
    facts = Manifest(run="0" * 16, step=1, time=datetime.datetime.now(datetime.UTC))
    commit, _ = timed(lambda: write_sharded(folder, Document(tree), facts, parts))
    folder.commit()
    path = os.path.join(root, step_name(1))
    opening, checkpoint = timed(lambda: open_checkpoint(path))
    checkpoint.close()
    with open(os.path.join(path, ENTRIES), "rb") as file:
        data = file.read()
    once, _ = timed(lambda: msgspec.json.decode(data, type=_EntriesFile))
    tracemalloc.start()  # counts, and slows what is not timed any more
    with open_checkpoint(path):
        kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "told": sum(map(len, told)) / count,
        "hear": (hearing + dealing) / count,
        "commit": commit / count,
        "open": opening / count,
        "kept": kept / count,
        "once": once / count,
        "record": os.path.getsize(os.path.join(path, MANIFEST)) / ranks,
    }


def upload() -> float:
    """Bytes a second of the second reading of an upload."""
    staged = StagedObject("memory://nowhere/object")
    staged.write([WriteRequest(0, os.urandom(UPLOAD))])
    seconds, _ = timed(lambda: sum(map(len, staged.blocks())))
    return UPLOAD / seconds


def main() -> None:
    """Prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--tensors", type=int, default=400)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for name, value in of_entries(root, args.ranks, args.tensors).items():
            print(f"{name:8} {value:.3g}")
    print(f"{'upload':8} {upload():.3g}")


if __name__ == "__main__":
    main()
