"""The one other pickle module that torch knows by name."""

from __future__ import annotations

from typing import Any

from holdfast.compat.untyped import untyped

_OLDEST = (0, 3, 1)


def check_dill(pickle_module: Any) -> None:
    """Raises ValueError for a dill that is too old for torch."""
    if pickle_module is None or pickle_module.__name__ != "dill":
        return
    if not untyped.serialization.check_module_version_greater_or_equal(pickle_module, _OLDEST, False):
        raise ValueError(
            f"'torch' supports dill >= {'.'.join(map(str, _OLDEST))}, but you have dill {pickle_module.__version__}. "
            "Please upgrade dill or switch to 'pickle'"
        )
