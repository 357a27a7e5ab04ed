"""What a notebook shows of a run, a report and a diff."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast

EVIL = "<script>alert(1)</script>\x1b[2J\u202e"


class Page(HTMLParser):
    """The tags and the text of a piece of HTML; every tag that is opened must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= {"style"}
        self.tags.append(tag)
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open[-1] == "td":
            self.cells.append(data)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_shows_its_checkpoints_as_ls_does() -> None:
    with holdfast.Run("runs/<b>a", model=nn.Linear(2, 1), best="loss:min", save="end") as run:
        assert "0 checkpoints" in Page(run._repr_html_()).text
        run.save(step=1, epoch=0, metrics={"loss": 2.0, EVIL: 1.0})
        run.save(step=2, epoch=1, metrics={"loss": 1.0, EVIL: 1.0})
        page = Page(run._repr_html_())
    assert set(page.tags) == {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert "Run runs/<b>a: epoch 1, step 2" in page.text
    assert "loss  █▁  2 -> 1" in page.text
    assert "best by loss:min" in page.cells
    assert page.cells.count("1") >= 1
    assert "\\x1b[2J" in page.text
    assert "\x1b" not in page.text


def test_a_load_report_shows_its_sections() -> None:
    holdfast.save({"model": {"weight": torch.ones(1, 2), EVIL: torch.ones(1)}, EVIL: 3}, "a.pt")
    net = nn.Linear(2, 1)
    report = holdfast.restore("a.pt", model=net, match=holdfast.Warm(), dry_run=True)
    page = Page(report._repr_html_())
    assert page.text.startswith("loaded 1 tensors and states")
    assert "missing from the file (1)" in page.text
    assert "model.bias" in page.cells
    assert any(cell.startswith("<script>alert(1)</script>\\x1b[2J") for cell in page.cells)
    assert str(report).splitlines()[0] in page.text


def test_a_diff_shows_its_tables() -> None:
    page = Page(holdfast.diff({"w": torch.ones(2), EVIL: 1}, {"w": torch.zeros(2), EVIL: 2})._repr_html_())
    assert "w" in page.cells
    assert "1.414" in page.cells
    assert "<script>alert(1)</script>\\x1b[2J\\u202e" in page.cells
    assert Page(holdfast.diff({"w": 1}, {"w": 1})._repr_html_()).text.endswith("identical, 0 tensors")


def test_it_follows_the_colours_of_the_page() -> None:
    html = holdfast.diff({"w": 1}, {"w": 2})._repr_html_()
    assert "color:" not in html.replace("border-color:", "")
    assert "background" not in html
