"""Holdfast saves and loads PyTorch models and training runs: safely, durably, fast, and saying what it did.

``import holdfast`` is light: each name below is imported on first use, and torch only by those that need it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # type checkers take it for true; the real one would import ten modules to say so
if TYPE_CHECKING:
    from types import ModuleType as _Module
    from typing import Any

    from holdfast import compat as compat
    from holdfast import surgery as surgery
    from holdfast.api import build as build
    from holdfast.api import convert as convert
    from holdfast.api import diff as diff
    from holdfast.api import export as export
    from holdfast.api import load as load
    from holdfast.api import open as open
    from holdfast.api import quantize as quantize
    from holdfast.api import rescue as rescue
    from holdfast.api import restore as restore
    from holdfast.api import save as save
    from holdfast.api import snapshot as snapshot
    from holdfast.api import summary as summary
    from holdfast.api import verify as verify
    from holdfast.errors import HoldfastError as HoldfastError
    from holdfast.formats.scan import scan as scan
    from holdfast.objects.builder import record_config as record_config
    from holdfast.policy.policies import Exact as Exact
    from holdfast.policy.policies import Warm as Warm
    from holdfast.policy.report import LoadReport as LoadReport
    from holdfast.runs.retention import KeepBest as KeepBest
    from holdfast.runs.retention import KeepEvery as KeepEvery
    from holdfast.runs.retention import KeepLast as KeepLast
    from holdfast.runs.retention import KeepSize as KeepSize
    from holdfast.runs.retention import Pinned as Pinned
    from holdfast.state.values import Opaque as Opaque
    from holdfast.state.values import Record as Record
    from holdfast.training.run import Run as Run
else:
    _Module = type(sys)

__version__ = "0.1.0.dev0"

_HOME = {
    "build": "api",
    "convert": "api",
    "diff": "api",
    "export": "api",
    "load": "api",
    "open": "api",
    "quantize": "api",
    "rescue": "api",
    "restore": "api",
    "save": "api",
    "scan": "formats.scan",
    "snapshot": "api",
    "summary": "api",
    "verify": "api",
    "HoldfastError": "errors",
    "record_config": "objects.builder",
    "Exact": "policy.policies",
    "LoadReport": "policy.report",
    "KeepBest": "runs.retention",
    "KeepEvery": "runs.retention",
    "KeepLast": "runs.retention",
    "KeepSize": "runs.retention",
    "Pinned": "runs.retention",
    "Opaque": "state.values",
    "Record": "state.values",
    "Run": "training.run",
    "compat": "compat",
    "surgery": "surgery",
    "Warm": "policy.policies",
}

__all__ = [*sorted(_HOME), "__version__"]  # noqa: PLE0604  (strings, sorted from the table above)


class _Face(_Module):
    """This package, whose names are those of the table.

    Python puts a room that is imported, ``holdfast.export``, into its package under its name, and would put it in the
    place of the function that is called the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, _Module) and _HOME.get(name, name) != name):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    import importlib

    try:
        home = importlib.import_module(f"holdfast.{_HOME[name]}")
    except ModuleNotFoundError as reason:
        if reason.name not in ("torch", "numpy"):
            raise
        from holdfast.errors import MissingExtra

        raise MissingExtra(
            f'holdfast.{name} needs {reason.name}, which is not installed: pip install "holdfast[torch]"'
        ) from reason
    value = home if _HOME[name] == name else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
