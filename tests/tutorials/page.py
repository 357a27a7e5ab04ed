"""Writes docs/tutorials.md and docs/tutorials.zh-CN.md out of blocks/: ``python -m tests.tutorials.page``."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.docs.pages import ROOT, recipes
from tests.docs.pages import blocks as blocks_of
from tests.tutorials.blocks import WORDS, Block, Entry, blocks, entries, preamble


class Language(NamedTuple):
    """One page: which parts it takes, its files, and its own words."""

    code: str
    page: str
    recipes: str
    title: str
    other: str
    intro: str
    words: dict[str, str]
    tutorials: dict[str, str]


ENGLISH = Language(
    "en",
    "docs/tutorials.md",
    "recipes.md",
    "# Your tutorial, block by block",
    "[中文](tutorials.zh-CN.md)",
    """Five tutorials on saving and loading PyTorch models, of the kind that everybody has copied from, have 67 blocks of code.
Here is each of them: what it is for, what torch does with it today, and what to type. The code of the blocks is told
in our own words.

Everything below was run on torch 2.13, on a machine without a GPU, and is run again by `tests/tutorials/`: the block, the
output below it, and the answer. `...` stands for output that was left out. Files that say they come from a GPU were
written with `from_gpu` of the first block.

[Lint](lint.md) finds these mistakes in your own script: `holdfast lint train.py`.""",
    {
        "tally": "What torch does with them today",
        "word": "word",
        "means": "means",
        "blocks": "blocks",
        "OK": "runs and does what the text says",
        "WARNS": "runs, deprecated or with a warning",
        "RAISES": "raises an error",
        "SYNTAX": "is no Python",
        "SILENT": "runs, and does the wrong thing without an error",
        "GPU": "raises on a machine without a GPU",
        "EMPTY": "has no code",
        "preamble": "Every block begins with this",
        "all": "All blocks",
        "block": "block",
        "today": "today",
        "recipe": "recipe",
        "lint": "lint",
        "before": "Before it:",
        "typed": "Your tutorial:",
        "now": "Today",
        "type": "Type instead",
        "also": "With this before it:",
        "exercises": "The four usual exercises, solved",
        "statements": "Statements that are wrong or outdated",
        "where": "tutorial",
        "said": "says",
        "stop": ".",
    },
    {
        "000": "Tutorial 000: a short guide to saving and loading",
        "001": "Tutorial 001: the long guide, with devices",
        "002": "Tutorial 002: a Sequential, and TorchScript",
        "003": "Tutorial 003: a notebook on the sources",
        "004": "Tutorial 004: from the first file to production",
    },
)
CHINESE = Language(
    "zh",
    "docs/tutorials.zh-CN.md",
    "recipes.zh-CN.md",
    "# 你的教程，逐块对照",
    "[English](tutorials.md)",
    """五篇关于保存和加载 PyTorch 模型的教程，就是大家都抄过的那一类，一共有 67 个代码块。
这里逐块说明：它是做什么的，现在的 torch 运行它会怎样，应该怎么写。代码块都用我们自己的话重写过。

下面的内容都在 torch 2.13、没有 GPU 的机器上运行过，并由 `tests/tutorials/` 反复验证：原来的代码、它的输出，以及给出的写法。
`...` 表示省略的输出。“来自 GPU 的文件”是用第一个代码块里的 `from_gpu` 写出来的。

[lint](lint.md)（英文）能在你自己的脚本里找出这些错误：`holdfast lint train.py`。""",
    {
        "tally": "现在的 torch 运行它们会怎样",
        "word": "标记",
        "means": "含义",
        "blocks": "块数",
        "OK": "能运行，效果与教程所说一致",
        "WARNS": "能运行，但已弃用或有警告",
        "RAISES": "报错",
        "SYNTAX": "不是合法的 Python",
        "SILENT": "能运行，却在不报错的情况下做错事",
        "GPU": "在没有 GPU 的机器上报错",
        "EMPTY": "没有代码",
        "preamble": "所有代码块都从这里开始",
        "all": "全部代码块",
        "block": "代码块",
        "today": "现在",
        "recipe": "手册",
        "lint": "lint",
        "before": "在它之前：",
        "typed": "教程的写法：",
        "now": "现在",
        "type": "改写成",
        "also": "在它之前：",
        "exercises": "四道常见练习的解答",
        "statements": "错误或过时的说法",
        "where": "教程",
        "said": "说法",
        "stop": "。",
    },
    {
        "000": "教程 000：保存与加载简明指南",
        "001": "教程 001：详细指南，涉及各种设备",
        "002": "教程 002：Sequential 与 TorchScript",
        "003": "教程 003：解读源码的笔记",
        "004": "教程 004：从第一个文件到生产环境",
    },
)


def write_page(language: Language) -> str:
    """The whole page."""
    return "\n\n".join(_sections(language)).rstrip() + "\n"


def _sections(language: Language) -> Iterator[str]:
    words, found = language.words, blocks()
    anchors = _recipe_anchors(language)
    yield f"{language.title}\n\n<!-- written by `python -m tests.tutorials.page` -->"
    yield f"{language.intro}\n{language.other}"
    yield f"## {words['tally']}\n\n{_tally(language, found)}"
    yield f"## {words['preamble']}\n\n{_fenced('python', preamble())}"
    yield f"## {words['all']}\n\n{_index(language, found)}"
    tutorial = ""
    for block in found:
        if block.key.split()[0] != tutorial:
            tutorial = block.key.split()[0]
            yield f"## {language.tutorials[tutorial]}"
        yield from _block(language, block, anchors)
    yield f"## {words['exercises']}"
    for exercise in entries("exercises.txt"):
        title, text = _prose(exercise, language.code)
        yield f"### {exercise.fields[0]} {title}\n\n{text}"
        yield _fenced("python", exercise.part("code"))
        yield _fenced("text", exercise.part("gives"))
    yield f"## {words['statements']}\n\n{_statements(language)}"


def _block(language: Language, block: Block, anchors: dict[str, str]) -> Iterator[str]:
    words, code = language.words, language.code
    title, text = _prose(block, code)
    yield f'<a id="{_anchor(block)}"></a>\n\n### {block.key} {title}'
    if text:
        yield text
    if block.part("given"):
        yield f"{words['before']}\n\n{_fenced('python', block.part('given'))}"
    yield f"{words['typed']}\n\n{_fenced('python', block.part('typed'))}"
    yield f"**{words['now']}: {block.result}**{words['stop']} {block.part(f'{code} today').strip()}"
    if block.part("shows"):
        yield _fenced("text", block.part("shows"))
    links = ", ".join(f"[{name}]({anchors[name]})" for name in block.recipes)
    yield f"**{words['type']}** ({links}){words['stop']} {block.part(f'{code} type').strip()}".rstrip()
    if block.part("also given"):
        yield f"{words['also']}\n\n{_fenced('python', block.part('also given'))}"
    yield _fenced("python", block.part("type"))
    if block.part("gives"):
        yield _fenced("text", block.part("gives"))


def _prose(entry: Block | Entry, code: str) -> tuple[str, str]:
    """The heading of an entry and the text below it."""
    title, _, text = entry.part(code).strip().partition("\n")
    return title, text.strip()


def _fenced(kind: str, text: str) -> str:
    return f"```{kind}\n{text.strip(chr(10))}\n```"


def _tally(language: Language, found: list[Block]) -> str:
    words, counts = language.words, collections.Counter(block.result for block in found)
    rows = [f"| {word} | {words[word]} | {counts[word]} |" for word in WORDS]
    return _table([words["word"], words["means"], words["blocks"]], rows)


def _index(language: Language, found: list[Block]) -> str:
    words = language.words
    rows = []
    for block in found:
        lint = ", ".join(f"[{code}](lint.md#{code.lower()})" for code in block.lint)
        title, _ = _prose(block, language.code)
        rows.append(f"| [{block.key}](#{_anchor(block)}) | {title} | {block.result} | {' '.join(block.recipes)} | {lint} |")
    return _table([words[name] for name in ("block", "said", "today", "recipe", "lint")], rows)


def _statements(language: Language) -> str:
    words, code = language.words, language.code
    rows = [
        f"| {entry.fields[0]} | {entry.part(code).strip()} | {entry.part(f'{code} today').strip()} |"
        for entry in entries("statements.txt")
    ]
    return _table([words["where"], words["said"], words["today"]], rows)


def _table(header: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *rows])


def _anchor(block: Block) -> str:
    return block.key.lower().replace(" ", "-")


def _recipe_anchors(language: Language) -> dict[str, str]:
    """Where each recipe stands on the page of recipes: ``recipes.md#r2-save-and-load-the-parameters``."""
    headings = [block.text for block in blocks_of(f"docs/{language.recipes}") if block.kind == "heading"]
    slugs = {heading: re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    known = {name for name, _ in recipes(f"docs/{language.recipes}")}
    return {
        heading.split()[0]: f"{language.recipes}#{slug}" for heading, slug in slugs.items() if heading.split()[0] in known
    }


if __name__ == "__main__":
    for one in (ENGLISH, CHINESE):
        (ROOT / one.page).write_text(write_page(one), encoding="utf-8")
