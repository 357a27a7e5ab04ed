"""A file that runs something when its pickle is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def flip_in(path: Path, content: bytes) -> None:
    """Flips a bit in the middle of bytes that a file is known to hold."""
    whole = path.read_bytes()
    assert whole.count(content) == 1
    at = whole.index(content) + len(content) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
