"""What a name means that a pickle would import: harmless, torch's own, unknown, or one that runs whatever it is given.

The dangerous names are those that public collections of malicious pickles and gadgets use
(https://github.com/mmaitre314/picklescan and https://github.com/trailofbits/fickling list such names). The list can
never be complete, so everything that is not known to be harmless is unknown, and unknown is not safe.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from holdfast.formats.forms import FORMS, TORCH_NAMES
from holdfast.formats.rebuild import REBUILT
from holdfast.spec import BY_STORAGE

Verdict = Literal["plain", "torch", "unknown", "dangerous"]
"""From the best to the worst: a value, a class of torch, any other name, a way to run code."""
ORDER: tuple[Verdict, ...] = ("plain", "torch", "unknown", "dangerous")

_LISTED = """
_aix_support _osx_support _pickle _posixsubprocess _pyrepl _thread _winapi aiohttp asyncio bdb builtins cProfile cffi
cloudpickle code codeop commands concurrent ctypes dill distutils doctest ensurepip fileinput ftplib gc http httplib
httpx idlelib imaplib imp importlib inspect joblib keyrings lib2to3 linecache marshal mmap modulefinder msvcrt
multiprocessing nntplib nt numba operator os pdb pickle pickletools pip pkg_resources pkgutil platform poplib popen2
posix posixpath profile pty py_compile pyclbr pydoc pytest requests resource runpy sched setuptools shelve shutil signal
site smtplib socket socketserver sqlite3 ssl subprocess sys sysconfig tarfile telnetlib tempfile test threading timeit
trace tty types unittest urllib urllib2 uuid venv webbrowser winreg xmlrpc zipapp zipfile zipimport
"""
_MODULES = frozenset(_LISTED.split())
"""Modules whose names let a pickle run code, reach files or the network; what is a value is judged before."""

_PARTS = (
    "functools.reduce", "itertools.starmap", "io.open", "io.FileIO", "_io", "logging.config", "numpy.load",
    "numpy.fromfile", "numpy.distutils", "numpy.f2py", "numpy.testing", "pandas.io.pickle", "pandas.read_pickle",
    "torch.classes", "torch.compile", "torch.distributed.elastic", "torch.distributed.launch", "torch.distributed.rpc",
    "torch.distributed.launcher", "torch.distributed.run", "torch.fx.graph_module", "torch.hub", "torch.jit",
    "torch.load", "torch.multiprocessing", "torch.ops", "torch.package", "torch.save", "torch.serialization.load",
    "torch.storage._load_from_bytes", "torch.testing", "torch.utils._config_module", "torch.utils.bottleneck",
    "torch.utils.collect_env", "torch.utils.cpp_extension", "torch.utils.data.datapipes", "torch._inductor",
)  # fmt: skip
"""Names, and parts of packages, that run or load what they are given."""

_TORCH = ("torch.nn.", "torch.optim.", "torch.ao.nn.", "torch.utils.hooks.")
_VALUES = frozenset(
    {*FORMS, *TORCH_NAMES, *REBUILT, "torch.Tensor", "torch.ScriptObject", "torch._C.ScriptObject", "builtins.object"}
)
_VALUES |= {"copyreg.__newobj__", "numpy.ndarray", "types.SimpleNamespace"}
_VALUES |= {
    f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "NotImplemented", "Ellipsis")
}
_VALUES |= {f"torch.{home}{name}" for home in ("", "cuda.", "storage.") for name in (*BY_STORAGE, "UntypedStorage")}
_VALUES |= {"torch.nn.functional.relu", "torch._C._nn.gelu"}
_FUNCTIONS = frozenset({"torch.nn.functional", "torch._C._nn", "torch._C._VariableFunctionsClass"})
_INNER = frozenset({"os", "sys", "subprocess", "importlib", "builtins", "posix", "shutil", "socket", "ctypes", "runpy"})
"""Modules that other modules have among their names."""


class Finding(msgspec.Struct):
    """One thing in a program that is not known to be harmless.

    Attributes:
        member: of the archive.
        what: what is wrong with it, and where in it.
    """

    member: str
    what: str


def judge(module: str, name: str) -> tuple[Verdict, str]:
    """A verdict on one name, and why.

    Args:
        module: as the pickle would import it.
        name: what it would take from it; a dotted name goes through attributes, of other modules too.
    """
    path = f"{module}.{name}"
    if path in _VALUES:
        return "plain", "a value"
    root = module.partition(".")[0]
    if root == "__torch__" or module == "torch.jit._pickle":
        return "plain", "of TorchScript, whose own reader runs no Python"
    if root in _MODULES:
        return "dangerous", f"{root} lets a pickle run code or reach files"
    if any(path == part or path.startswith(f"{part}.") for part in _PARTS):
        return "dangerous", "runs or loads what it is given"
    *above, last = name.split(".")
    inner = next((part for part in above if part in _MODULES), last if last in _INNER else None)
    if inner is not None:
        return "dangerous", f"goes through {inner}, which lets a pickle run code or reach files"
    if path.startswith(_TORCH) and "." not in name:
        return "torch", "a class of torch"
    if path in _FUNCTIONS or (module in _FUNCTIONS and name.isidentifier() and not name.startswith("_")):
        return "torch", "a function on tensors"
    return "unknown", f"would import {root}, and run what its {last} does"
