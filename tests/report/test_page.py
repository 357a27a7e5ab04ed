"""The page in a real browser: what it shows, how it is moved about in, and that it asks nobody for anything."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.report.data import page_data
from holdfast.report.page import page_text
from holdfast.report.subject import Subject, opened_subject
from holdfast.state.statistics import TensorStats
from tests.report.looking import Looking
from tests.runs.hand_made import commit

Look = Callable[..., Looking]
EVIL = [
    "</script><script>window.fired = 1</script>",
    "<img src=x onerror='window.fired = 2'>",
    "a\x1b]0;owned\x07\x1b[31mred",
    "safe\u202egnp.exe\u2066\u200b",
    "<!--<script>\u2028\u2029{{data}} &lt; & \\",
    "javascript:window.fired=3//'\"`",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_of_a_run_opens_without_a_complaint_or_a_request(look: Look, run_page: Path, scheme: str) -> None:
    looking = look(run_page, color_scheme=scheme)
    assert looking.tabs() == ["Overview", "Changes", "Bytes", "Tensors", "Record"]
    for at, tab in enumerate(looking.tabs(), 1):
        looking.press(str(at))
        assert looking.where().get("tab", "overview") == tab.lower()
        assert looking.page.locator("[role=tabpanel]:visible").count() == 1
        assert looking.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = looking.style("body", "background-color")
    assert (sum(map(int, ground.strip("rgb()").split(","))) < 200) is (scheme == "dark")


def test_the_overview_says_what_a_person_asks_first(look: Look, run_page: Path) -> None:
    looking = look(run_page)
    text = looking.text()
    for wanted in ("Last step\n20", "Best val_loss\n0.25", "step 16", "1 tensor with NaN", "best val_loss:min"):
        assert wanted in text
    assert "pin paper" in text
    assert "lr\n0.05" in text or "lr0.05" in text
    assert "last: 1 of 9" in text


def test_a_line_stops_where_its_value_is_nan(look: Look, run_page: Path) -> None:
    looking = look(run_page)
    losses = looking.page.locator(".card").first
    paths = [str(one.get_attribute("d")) for one in losses.locator("path.line").all()]
    assert [path.count("M") for path in paths] == [1, 2]
    assert losses.locator("path.gap").count() == 1
    assert losses.locator("path.mark.best").count() == 2
    assert losses.locator("path.mark.pin").count() == 2


def test_arrows_read_a_chart_and_l_makes_it_logarithmic(look: Look, run_page: Path) -> None:
    looking = look(run_page)
    card = looking.page.locator(".card", has_text="lr").last
    before = card.locator("text.tick").all_text_contents()
    card.locator("svg.chart").focus()
    looking.press("ArrowRight", "ArrowRight")
    assert "at 8" in card.locator(".readout").inner_text()
    assert "at 8" in looking.page.locator(".card .readout").first.inner_text()
    looking.press("l")
    assert looking.where()["log"] == "1"
    after = card.locator("text.tick").all_text_contents()
    assert "1e\u22125" in after
    assert "1e\u22125" not in before


def test_search_takes_words_patterns_and_properties(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=tensors")
    everything = looking.rows()
    looking.press("/")
    looking.page.keyboard.type("body weight")
    assert looking.rows() == ["model.body.0.weight", "model.body.1.weight"]
    assert looking.where()["q"] == "body weight"
    looking.page.fill("#search", "is:nan")
    assert looking.rows() == ["model.broken"]
    looking.page.fill("#search", "model*1*bias")
    assert looking.rows() == ["model.body.1.bias"]
    looking.page.fill("#search", "dtype:uint8")
    assert all(name.startswith("rng.") for name in looking.rows())
    looking.page.fill("#search", "(nothing[")
    assert looking.rows() == []
    assert "0 tensors" in looking.text()
    looking.press("Escape")
    assert looking.rows() == everything


def test_a_click_on_a_column_sorts_by_it_and_the_address_keeps_it(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=tensors&q=model")
    order = looking.rows()
    looking.page.get_by_role("columnheader", name="size").get_by_role("button").click()
    assert looking.where()["sort"] == "-bytes"
    assert looking.rows()[:2] == ["model.body.0.weight", "model.body.1.weight"]
    assert looking.page.get_by_role("columnheader", name="size").get_attribute("aria-sort") == "descending"
    looking.page.reload()
    assert looking.rows()[:2] == ["model.body.0.weight", "model.body.1.weight"]
    looking.page.get_by_role("columnheader", name="size").get_by_role("button").click()
    assert looking.rows()[0] == "model.head.bias"
    looking.page.get_by_role("columnheader", name="size").get_by_role("button").click()
    assert looking.rows() == order


def test_a_selected_tensor_shows_its_numbers_and_pictures(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=tensors&q=model")
    looking.press("j", "j", "j")
    assert looking.selected() == looking.rows()[2] == looking.where()["t"]
    looking.press("k")
    assert looking.selected() == looking.rows()[1]
    active = looking.page.get_attribute("[role=grid]", "aria-activedescendant")
    assert looking.page.get_attribute(f"[id='{active}']", "aria-selected") == "true"
    looking.page.locator(".row", has_text="broken").click()
    panel = looking.text("aside")
    assert "NaN\n1 (25.0%)" in panel
    assert "max\n2" in panel
    looking.page.locator(".row", has_text="body.0.weight").first.click()
    assert looking.page.locator("aside canvas.cells").count() == 1
    assert looking.page.locator("aside svg.histogram rect.below").count() > 3
    assert looking.page.locator("aside svg.chart").count() == 2, "its norm and its change over the checkpoints"
    looking.press("Escape")
    assert "t" not in looking.where()
    assert not looking.page.locator("aside").is_visible()


def test_an_address_opens_what_it_names(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=tensors&t=model.head.weight&q=head&theme=dark")
    assert looking.selected() == "model.head.weight"
    assert looking.page.input_value("#search") == "head"
    assert looking.page.evaluate("document.documentElement.dataset.theme") == "dark"
    looking.page.evaluate("location.hash = '#tab=record'")
    looking.page.wait_for_selector("#view-record:visible")
    looking.page.go_back()
    looking.page.wait_for_selector("#view-tensors:visible")
    assert looking.selected() == "model.head.weight"


@pytest.mark.parametrize("where", ["tab=nothing&t=%zz&sort=-__proto__", "constructor=1&tab=__proto__", "&&==&tab"])
def test_an_address_that_says_nothing_true_is_harmless(look: Look, run_page: Path, where: str) -> None:
    assert look(run_page, where).page.locator("#view-overview").is_visible()


def test_keys_reach_everything(look: Look, run_page: Path) -> None:
    looking = look(run_page)
    looking.press("?")
    assert looking.page.locator("dialog[open]").is_visible()
    looking.press("j")
    assert looking.page.locator("#view-overview").is_visible(), "keys rest while the list is open"
    looking.press("Escape")
    assert not looking.page.locator("dialog[open]").count()
    ground = looking.style("body", "background-color")
    looking.press("t")
    assert looking.style("body", "background-color") != ground
    looking.press("t")
    assert looking.style("body", "background-color") == ground
    looking.page.locator("#tab-overview").focus()
    looking.press("ArrowRight", "ArrowRight")
    assert looking.where()["tab"] == "bytes"
    assert looking.page.evaluate("document.activeElement.id") == "tab-bytes"
    looking.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert looking.where()["tab"] == "record"
    looking.press("Tab")
    assert float(looking.style(":focus-visible", "outline-width").removesuffix("px")) >= 2


def test_areas_open_by_click_and_by_key(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=bytes&q=model")
    looking.page.locator("canvas.map").click(position={"x": 60, "y": 60})
    assert looking.where()["zoom"] == "model"
    looking.page.locator("canvas.map").focus()
    looking.press("Enter")
    assert looking.where()["zoom"] == "model.body"
    assert "model" in looking.text(".crumbs")
    assert "body" in looking.text(".crumbs")
    looking.press("Enter", "Escape", "Escape")
    assert looking.where()["zoom"] == "model"
    looking.page.select_option("select >> nth=0", "std")
    assert looking.where()["colour"] == "std"
    assert looking.page.locator("#view-bytes .legend canvas").count() == 1


def test_layers_that_did_not_move_are_told_from_those_that_did(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=changes")
    told = {}
    for row in range(5):
        looking.page.locator("canvas.heat").hover(position={"x": 400, "y": 46 + 20 * row + 10})
        name, change = looking.text("#tip").split("\n")[:2]
        told[name] = change
    assert told["model.frozen"].endswith("the same to the bit")
    assert "step 4 → 8: relative change 0." in told["model.head"] or "e\u2212" in told["model.head"]
    row = list(told).index("model.frozen")
    looking.page.locator("canvas.heat").click(position={"x": 400, "y": 46 + 20 * row + 10})
    assert looking.where()["tab"] == "tensors"
    assert set(looking.rows()) == {"model.frozen.weight", "model.frozen.bias"}


def test_records_of_two_checkpoints_are_compared(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=record")
    whole = looking.text("#view-record")
    assert "'first'" in whole
    assert "torch" in whole
    looking.page.get_by_label("Compared with").select_option("8")
    text = looking.text("#view-record .record")
    assert looking.where()["with"] == "8"
    assert "val_loss\t0.5\t0.3" in text
    assert "'first'" not in text, "what is the same is left out"
    looking.page.get_by_label("Search the record").fill("val_loss")
    assert "train_loss" not in looking.text("#view-record .record")


def test_a_difference_is_shown_with_numbers(look: Look, run_folder: Path, written: Callable[..., Path]) -> None:
    looking = look(written(f"{run_folder}@best", "--diff", f"{run_folder}@last"))
    assert looking.tabs()[0] == "Difference"
    text = looking.text()
    assert "position.step\t16\t20" in text
    rows = looking.rows()
    assert "model.head.weight" in rows
    assert "model.frozen.weight" not in rows
    cells = looking.page.locator("#view-difference .row", has_text="head.weight").first.locator("[role=gridcell]")
    norms = [holdfast.load(f"{run_folder}@{which}")["model"]["head.weight"] for which in ("best", "last")]
    shown = float(cells.nth(3).inner_text().replace("\u2212", "-"))
    assert shown == pytest.approx(float((norms[1] - norms[0]).norm()), rel=0.01)
    looking.page.get_by_label("Search tensors that differ").fill("bias")
    assert all(name.endswith("bias") for name in looking.rows())


def test_a_difference_names_what_only_one_side_has(look: Look, tmp_path: Path, written: Callable[..., Path]) -> None:
    moved = torch.arange(6.0)
    holdfast.save({"old": moved, "gone": torch.ones(2), "grown": torch.ones(3)}, tmp_path / "a.pt")
    holdfast.save({"new": moved, "fresh": torch.ones(4, dtype=torch.int8), "grown": torch.ones(5)}, tmp_path / "b.pt")
    text = look(written(tmp_path / "a.pt", "--diff", str(tmp_path / "b.pt"))).text()
    for wanted in ("old\tnew", "gone\t(2,) float32", "fresh\t(4,) int8", "(3,) float32 → (5,) float32"):
        assert wanted in text


def test_a_hundred_thousand_tensors_are_a_few_rows(look: Look, tmp_path: Path) -> None:
    data = page_data(Subject("many"), {})
    names = [f"layers.{at // 4}.{'qkvo'[at % 4]}.weight" for at in range(100_000)]
    data["tensors"] = {
        "names": names,
        "dtype": [0] * len(names),
        "shape": [0] * len(names),
        "bytes": [at + 4 for at in range(len(names))],
        "dtypes": ["float32"],
        "shapes": [[4]],
        "shared": [],
        "stored": 1,
        "stats": {"of": [], "nan": [], "inf": [], "dead": {}, "note": {}, "histogram": {}, "thumbnail": {}},
        "without": "",
    }
    file = tmp_path / "many.html"
    file.write_text(page_text(data, "many"))
    looking = look(file, "tab=tensors")
    seen = []
    for share in (0, 0.5, 1):
        looking.page.eval_on_selector(".scroller", "(node, share) => node.scrollTop = node.scrollHeight * share", share)
        looking.page.wait_for_function(
            "share => Math.abs(document.querySelector('.space .row:last-child').offsetTop / 3200000 - share) < 0.01",
            arg=share,
        )
        seen.append(looking.rows())
        assert 10 < len(seen[-1]) < 80
    assert seen[0][0] == names[0]
    assert seen[2][-1] == names[-1]
    looking.page.fill("#search", "layers.24999.")
    assert looking.rows() == names[-4:]
    looking.page.fill("#search", "")
    looking.page.get_by_role("columnheader", name="size").get_by_role("button").click()
    assert looking.rows()[0] == names[-1]
    looking.press("3")
    assert looking.page.locator("canvas.map, .scroller").first.is_visible()


def evil_subject_page(folder: Path) -> str:
    """A run whose every name and value is an attack."""
    for step, word in ((10, "first"), (20, "second")):
        tree = {"model": dict.fromkeys(EVIL, word), "args": {name: name for name in EVIL}}
        manifest: dict[str, Any] = {"metrics": {name: float(step) for name in EVIL}, "environment": {EVIL[0]: EVIL[1]}}
        commit(folder, step, tree, objects={"model": {"kind": "module", "class": EVIL[0]}}, **manifest)
    with opened_subject(str(folder), datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)) as subject:
        subject.notes = tuple(EVIL)
        data = page_data(subject, {})
    data["tensors"] = evil_tensors(folder)
    return page_text(data, EVIL[0])


def evil_tensors(folder: Path) -> Any:
    """Tensors with such names, from a real file."""
    holdfast.save({name: torch.ones(3) for name in EVIL}, folder.parent / "evil.pt")
    with opened_subject(str(folder.parent / "evil.pt"), datetime.datetime.now(datetime.UTC)) as subject:
        stats = {0: TensorStats(count=3, nan=1, note=EVIL[0])}
        return page_data(subject, stats, without=EVIL[0])["tensors"]


def test_names_from_a_file_stay_text(look: Look, tmp_path: Path) -> None:
    file = tmp_path / "evil.html"
    file.write_text(evil_subject_page(tmp_path / "run"))
    looking = look(file)
    assert looking.tabs() == ["Overview", "Bytes", "Tensors", "Record"]
    looking.press("1", "2", "4", "3", "j", "j", "j", "j")
    assert looking.page.evaluate("window.fired") is None
    assert looking.page.locator("img").count() == 0
    assert looking.page.locator("script").count() == 2
    looking.page.evaluate("location.hash = '#tab=tensors'")
    looking.page.wait_for_selector(".space .row")
    names = "\n".join(looking.rows())
    assert "</script><script>window.fired = 1</script>" in names, "shown as it is, as text"
    assert r"a\x1b]0;owned\x07\x1b[31mred" in names
    assert r"safe\u202egnp.exe\u2066\u200b" in names
    whole = looking.page.content()
    assert not set("\x1b\x07\u202e\u2066\u200b\u2028\u2029") & set(whole)


def test_the_same_names_would_run_in_a_page_that_did_not_escape_them(look: Look, tmp_path: Path) -> None:
    """The control: without escapes and policy the attack fires; with the policy alone it is stopped, and heard."""
    safe = evil_subject_page(tmp_path / "run")
    start = safe.index('id="data">') + len('id="data">')
    loose = safe[:start] + EVIL[0] + EVIL[1] + safe[start:]
    policy = safe[safe.index("<meta http-equiv") : safe.index("<meta name")]
    (tmp_path / "loose.html").write_text(loose.replace(policy, ""))
    fired = look(tmp_path / "loose.html", expect_trouble=True)
    assert fired.page.evaluate("window.fired") in (1, 2)
    (tmp_path / "guarded.html").write_text(loose)
    guarded = look(tmp_path / "guarded.html", expect_trouble=True)
    assert guarded.page.evaluate("window.fired") is None
    assert any("Content Security Policy" in one for one in guarded.trouble)


def test_a_page_that_asks_for_something_is_noticed(look: Look, run_page: Path, tmp_path: Path) -> None:
    """The control of the other tests: a picture from elsewhere is a request, and the policy forbids it."""
    (tmp_path / "asks.html").write_text(
        run_page.read_text().replace("</main>", '</main><img src="https://a.test/b.png">')
    )
    assert any("Content Security Policy" in one for one in look(tmp_path / "asks.html", expect_trouble=True).trouble)


def test_what_is_printed_is_light_and_whole(look: Look, run_page: Path) -> None:
    looking = look(run_page, "tab=tensors&theme=dark&q=model")
    looking.page.emulate_media(media="print")
    assert looking.style("body", "background-color") == "rgb(255, 255, 255)"
    assert not looking.page.locator("#tabs").is_visible()
    assert not looking.page.locator("#search").is_visible()
    looking.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(looking.rows()) == 9
    looking.page.evaluate("location.hash = '#tab=overview&theme=dark'")
    colour = looking.page.locator("path.line").first.get_attribute("stroke")
    looking.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert looking.page.locator("path.line").first.get_attribute("stroke") != colour
    assert looking.page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("tab", ["overview", "changes", "bytes", "tensors", "record"])
def test_a_narrow_screen_scrolls_down_only(look: Look, run_page: Path, tab: str) -> None:
    looking = look(run_page, f"tab={tab}&t=model.head.weight", viewport={"width": 390, "height": 800})
    assert looking.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_run_without_a_checkpoint_has_a_page(look: Look, tmp_path: Path, written: Callable[..., Path]) -> None:
    damaged = commit(tmp_path / "run", 10)
    (damaged / "manifest.json").write_text("{}")
    looking = look(written(tmp_path / "run"))
    assert looking.tabs() == ["Overview"]
    assert "Step 10 is damaged" in looking.text()


def test_a_file_without_statistics_says_so(look: Look, tmp_path: Path, written: Callable[..., Path]) -> None:
    holdfast.save({"w": torch.randn(4, 4), "epoch": 3}, tmp_path / "net.pt")
    looking = look(written(tmp_path / "net.pt", "--no-stats"))
    assert "without statistics" in looking.text()
    assert looking.tabs() == ["Overview", "Bytes", "Tensors", "Record"]
    looking.press("3", "j")
    assert "without statistics" in looking.text("aside")


def test_a_file_is_safe_or_says_what_only_a_pickle_would_rebuild(
    look: Look, tmp_path: Path, written: Callable[..., Path]
) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(30, 20))
    torch.save(net.state_dict(), tmp_path / "state.pt")
    torch.save({"net": net, "when": argparse.ArgumentParser}, tmp_path / "whole.pt")
    assert "nothing in it asks to run code" in look(written(tmp_path / "state.pt")).text()
    looking = look(written(tmp_path / "whole.pt"))
    assert "only a pickle would rebuild, which may run code: " in looking.text()
    assert "torch.nn.modules" in looking.text()
    looking.page.get_by_role("button", name="net.0.weight").click()
    assert looking.where() == {"tab": "tensors", "t": "net.0.weight"}


def test_a_run_of_thousands_of_checkpoints_and_metrics_stays_a_page(look: Look, tmp_path: Path) -> None:
    data = page_data(Subject("long"), {})
    plain = {"epoch": None, "pins": [], "best": [], "metrics": {}, "verdict": "kept", "reasons": [], "batch": 0}
    plain |= {"size": 1, "time": "2025-01-01T00:00:00+00:00"}
    checkpoints = [{**plain, "step": step} for step in range(3000)]
    checkpoints[7]["best"] = ["metric0:min"]
    checkpoints[-1]["metrics"] = {f"metric{at}": float(at) for at in range(70)}
    about = {"root": "long", "rules": {}, "best": [], "history": [], "resume": [], "size": 1, "budget": None}
    data["run"] = {**about, "aside": [], "notes": [], "checkpoints": checkpoints}
    (tmp_path / "long.html").write_text(page_text(data, "long"))
    looking = look(tmp_path / "long.html")
    assert looking.page.locator(".checkpoints tbody tr").count() == 401, "the newest, and the best one"
    assert looking.page.locator(".card").count() == 60
    assert "2,599 older checkpoints are left out" in looking.text()
    assert "10 more charts are left out" in looking.text()
