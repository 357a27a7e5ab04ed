"""The kernel itself fails the calls of a real process, or kills it in them: strace puts that in, where it may trace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., list[dict[str, Any]]]
WRITES = "pwritev,pwritev2,pwrite64"
LOOKS = "newfstatat,?statx,?stat,?lstat,?fstat"  # a "?" before those that not every machine has
READS = "pread64,preadv,preadv2"
ERRORS = [
    f"{WRITES}:error=ENOSPC",
    f"{WRITES}:error=EDQUOT",
    f"{WRITES}:error=EIO",
    f"{WRITES}:retval=0",
    "fallocate:error=ENOSPC",
    "fsync:error=EIO",
    "fsync:error=ENOSPC",
    "rename:error=EIO",
    "mkdir:error=ENOSPC",
    "unlink:error=EIO",
    "rmdir:error=EIO",
    "close:error=EIO",
    "openat:error=EMFILE",
    f"{READS}:error=EIO",
    "getdents64:error=EIO",
    f"{LOOKS}:error=EIO",
    "flock,fcntl:error=ENOLCK",
]
KILLS = [f"{call}:signal=SIGKILL" for call in (WRITES, "fsync", "rename", "unlink", "mkdir", "close", "fallocate")]


@pytest.fixture
def inject(script: Script, memory_disk: Path) -> Callable[..., list[dict[str, Any]]]:
    """inject("first saves", "fsync:error=EIO") gives one line a spec; skips where strace can't."""

    def run(name: str, *specs: str, timeout: int = 100) -> list[dict[str, Any]]:
        if shutil.which("strace") is None:
            pytest.skip("strace is not installed")
        lines = script("injecting", memory_disk, name, *specs, timeout=timeout)
        if "denied" in lines[0]:
            pytest.skip(f"strace may not trace here: {lines[0]['denied']}")
        assert {line["spec"]: line["wrong"] for line in lines if line["wrong"]} == {}
        return lines

    return run


def test_some_calls_fail_in_the_kernel(inject: Callable[..., list[dict[str, Any]]]) -> None:
    specs = [f"{WRITES}:error=ENOSPC", "fsync:error=EIO", "rename:signal=SIGKILL", f"{READS}:error=EIO"]
    lines = {line["spec"]: line for line in inject("saves that prune", *specs)}
    assert all(line["calls"] > 2 for line in lines.values())
    assert all(line["raised"] > 2 for spec, line in lines.items() if "error" in spec)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["saves that prune", "a damaged one", "single files"])
def test_every_call_fails_in_the_kernel(
    name: str, inject: Callable[..., list[dict[str, Any]]], counted: Callable[[str], None]
) -> None:
    lines = inject(name, *ERRORS, *KILLS, timeout=900)
    failed = sum(line["calls"] for line in lines if line["spec"] not in KILLS)
    killed = sum(line["calls"] for line in lines if line["spec"] in KILLS)
    counted(f"strace, {name}: {failed} calls failed, {killed} killed")
