"""A real browser, Debian's own, and a page in it with everything that it complains about and asks for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.runs.run_file import write_pin
from tests.report.looking import Looking

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; never one that a package downloads. Closed with the module: it has an event loop of its own open."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Looking]]:
    """look(file, "tab=tensors") opens a page and returns it; what went wrong in it fails the test at its end."""
    opened: list[Looking] = []

    def open_page(file: Path, where: str = "", *, expect_trouble: bool = False, **options: Any) -> Looking:
        looking = Looking(browser, file, where, expect_trouble, options)
        opened.append(looking)
        return looking

    yield open_page
    for looking in opened:
        looking.close()


class Net(torch.nn.Module):
    """Three layers: one that is frozen, one with a NaN, one that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Linear(6, 40)
        self.body = torch.nn.ModuleDict({str(at): torch.nn.Linear(40, 40) for at in range(2)})
        self.head = torch.nn.Linear(40, 3)
        self.register_buffer("broken", torch.tensor([[1.0, float("nan")], [0.0, 2.0]]))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five checkpoints: a metric with a NaN, a best one, a pinned one."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("view") / "run"
    net = Net()
    net.frozen.requires_grad_(False)
    optimizer = torch.optim.SGD([one for one in net.parameters() if one.requires_grad], lr=0.05)
    losses = [0.9, 0.5, float("nan"), 0.25, 0.3]
    with holdfast.Run(
        folder, model=net, optimizer=optimizer, args={"lr": 0.05, "name": "first"}, best="val_loss:min", keep="last:9"
    ) as run:
        for epoch in run.epochs(5):
            for x in run.batches([torch.ones(2, 6)] * 4):
                optimizer.zero_grad()
                net.head(net.body["1"](net.body["0"](net.frozen(x)))).square().sum().backward()
                optimizer.step()
            run.end(epoch, val_loss=losses[epoch], train_loss=1.0 / (epoch + 1), lr=10.0 ** -(epoch + 2))
    write_pin(folder, "paper", 8)
    return folder


@pytest.fixture(scope="session")
def run_page(run_folder: Path, written: Callable[..., Path]) -> Path:
    return written(run_folder)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """written("net.pt", "--no-stats") is the page that holdfast view writes of a file."""
    from holdfast.cli.main import main

    folder = tmp_path_factory.mktemp("pages")

    def write(ref: object, *options: str) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.html"
        with pytest.raises(SystemExit) as caught:
            main(["view", str(ref), "-o", str(path), *options])
        assert caught.value.code == 0
        return path

    return write
