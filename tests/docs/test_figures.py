"""The READMEs' figures are those of docs/promises.md, and the glossary has every word."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

ENGLISH, CHINESE = ("README.md", "README.zh-CN.md")
CLAIMS = [
    ("less than half the time", "不到一半的时间", "save: ours .pt", "x torch", 0.5),
    ("a tenth less", "快大约一成", "save: ours .safetensors", "x safetensors", 0.93),
    (
        "less than half the time, 3 MB of memory in place of 1.4 GB",
        "额外内存 3 MB",
        "restore: ours .pt",
        "x torch",
        0.5,
    ),
    ("3 MB of memory", "额外内存 3 MB", "restore .pt", " MB", 3),
    ("a tenth", "十分之一", "added by ours, background=True", "x torch", 0.1),
    ("a tenth", "十分之一", "saved again, ours: 1.49 GB, 99 % frozen", "x torch", 0.1),
    ("a third", "三分之一", "load: ours .pt", "x torch", 1 / 3),
    ("under 150 ms", "不到 150 毫秒", "inspect 100 GB.pt, no bytecode", " ms", 150),
]
"""What the READMEs say, in both languages; the row of docs/promises.md, the unit, and what it must not pass."""
WORDS = {"state", "path", "Stateful", "TensorSpec", "container", "alias", "checkpoint", "partial", "run", "manifest"}
WORDS |= {"shard", "chunk", "snapshot", "retention rules", "prune", "trusted", "verify", "validate", "audit", "record"}
WORDS |= {"capture and restore", "serialize and deserialize", "save and load"}


def measured(what: str, unit: str) -> float:
    """A figure of the table of promises."""
    lines = (ROOT / "docs/promises.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| P") and f" | {what} | " in line)
    figure = re.search(rf"([\d.e+]+){unit}\b", row.split(f"| {what} |")[1])
    assert figure, row
    return float(figure[1])


@pytest.mark.parametrize(("english", "chinese", "what", "unit", "most"), CLAIMS)
def test_the_readmes_say_no_more_than_was_measured(
    english: str, chinese: str, what: str, unit: str, most: float
) -> None:
    assert english in (ROOT / ENGLISH).read_text(encoding="utf-8")
    assert chinese in (ROOT / CHINESE).read_text(encoding="utf-8")
    assert measured(what, unit) <= most


def test_each_word_has_one_definition() -> None:
    glossary = (ROOT / "docs/concepts.md").read_text(encoding="utf-8").split("## Glossary\n")[1]
    found = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]* \|$", glossary, re.MULTILINE)
    assert len(found) == len(set(found)) == glossary.count("\n| ")
    assert set(found) >= WORDS
