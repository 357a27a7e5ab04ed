"""The table of layers: a room may import the rooms named in its row, and what their rows may import."""

from __future__ import annotations

DIRECT: dict[str, set[str]] = {
    "errors": set(),
    "spec": {"errors"},
    "storage": {"errors", "spec"},
    "state": {"errors", "spec"},
    "formats": {"storage", "state"},
    "runs": {"storage", "formats", "state"},
    "policy": {"state"},
    "objects": {"state"},
    "serialization": {"storage", "formats", "state"},
    "transfer": {"serialization", "policy", "objects", "runs"},
    "distributed": {"transfer", "runs"},
    "training": {"transfer", "runs", "distributed"},
    "surgery": {"transfer"},
    "export": {"transfer"},
    "compat": {"serialization", "formats"},
    "integrations": {"training", "transfer"},
    "report": {"runs", "formats", "state"},
    "lint": {"state"},
    "cli": {"report", "runs", "formats", "storage", "state", "lint"},
    "api": {"training", "export", "compat", "distributed", "runs", "transfer"},
    "testing": {"api", "surgery", "integrations", "report", "cli"},
    "__init__": {"errors"},
    "__main__": {"cli"},
}
"""One row a room, inner rooms first. A file beside the rooms (`api.py`) is a room of its own."""

INSIDE_FUNCTIONS: dict[str, set[str]] = {
    "cli": {"api", "surgery", "training", "transfer", "serialization"},
    "__init__": set(DIRECT) - {"__main__"},
}
"""What a row may import as well, but only inside functions and for type checkers: these start without torch."""

LIGHT = {"errors", "spec", "storage", "state", "formats", "runs", "report", "lint", "cli", "__init__", "__main__"}
"""Rooms that work without torch and numpy."""

LIGHT_PACKAGES = {"msgspec", "xxhash", "isal"}
"""Third-party packages that a light room may import at its top."""

FRONT_PACKAGES = {"click", "rich"}
"""And these, in rooms that talk to a person."""

FRONT = {"cli", "report"}


def allowed(room: str) -> set[str]:
    """Every room that ``room`` may import: its row, the rows of its row, and itself."""
    found = {room}
    todo = [room]
    while todo:
        for other in DIRECT[todo.pop()] - found:
            found.add(other)
            todo.append(other)
    return found
