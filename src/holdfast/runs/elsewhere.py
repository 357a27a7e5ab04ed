"""Runs that live in another folder than the program says.

``holdfast prove`` trains a program without touching its run: what the program calls ``runs/a`` lies in a folder of the
proof. Whoever asks for the run by that name, to write it or to read ``runs/a@best``, gets the other folder.
"""

from __future__ import annotations

import os

from holdfast.storage.places import is_url

_FOLDERS: dict[str, str] = {}


def live_elsewhere(root: str, folder: str) -> None:
    """From now on this process finds the run ``root`` in ``folder``."""
    _FOLDERS[os.path.abspath(root)] = folder


def found_at(path: str) -> str:
    """Where a run, something in it, or a reference to it, is in this process: ``path`` itself, unless it was moved."""
    if not _FOLDERS or is_url(path):
        return path
    whole = os.path.abspath(path)
    for root, folder in _FOLDERS.items():
        if whole == root or whole.startswith((root + os.sep, root + "@")):
            return folder + whole[len(root) :]
    return path
