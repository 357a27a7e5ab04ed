"""The page as text: its size, its policy, its escapes, and that it is the same each time."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import json
import re
from pathlib import Path

import pytest

from holdfast.report import page
from holdfast.report.data import page_data
from holdfast.report.page import SCRIPTS, data_text, page_text
from holdfast.report.subject import Subject, opened_subject, spread
from holdfast.report.tensor_data import tensor_data
from holdfast.runs.catalog import Listed
from holdfast.state.statistics import Changes, TensorStats, Thumbnail
from tests.runs.hand_made import commit, tensor

ASSETS = Path(page.__file__).with_name("assets")
SHELL_LIMIT = 150_000


def test_the_shell_is_small() -> None:
    assert len(page_text({}, "").encode()) < SHELL_LIMIT


def test_every_asset_is_in_the_page() -> None:
    assert {file.name for file in ASSETS.iterdir()} == {*SCRIPTS, "page.html", "page.css"}


def test_the_policy_allows_these_bytes_and_nothing_else() -> None:
    text = page_text({"a": 1}, "title")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_nothing_in_the_page_leads_outside() -> None:
    shell = page_text({}, "").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]|\burl\(|@import|\bsrc=|\bhref=|fetch\(|XMLHttp|WebSocket|sendBeacon", shell)


def test_the_script_puts_text_in_as_text_only() -> None:
    script = "".join((ASSETS / name).read_text() for name in SCRIPTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|Function\(|srcdoc", script)


def test_data_has_no_tag_and_no_entity() -> None:
    data = {"</script>": "<!-- & \u2028\u2029 é \x00 \ud800"}
    text = data_text(data)
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == data


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        data_text({"loss": float("nan")})


def test_a_title_and_data_cannot_name_a_part_of_the_page() -> None:
    text = page_text({"a": "{{script}}"}, "</title>{{data}}")
    assert "<title>&lt;/title&gt;{{data}}</title>" in text
    assert '{"a":"{{script}}"}' in text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    for step in (10, 20):
        commit(tmp_path / "run", step, metrics={"loss": step / 100})
    now = datetime.datetime(2025, 2, 1, tzinfo=datetime.UTC)

    def text() -> str:
        with opened_subject(str(tmp_path / "run"), now) as subject:
            return page_text(page_data(subject, {}), "run")

    assert text() == text()


def test_a_record_is_all_of_the_first_checkpoint_and_what_differs_in_the_others(tmp_path: Path) -> None:
    for step in (10, 20):
        commit(tmp_path / "run", step, metrics={"loss": 0.5}, environment={"torch": "2.13.0", "host": f"node{step}"})
    with opened_subject(str(tmp_path / "run"), datetime.datetime.now(datetime.UTC)) as subject:
        records = page_data(subject, {})["records"]
    assert records["steps"] == [10, 20]
    first, second = ({tuple(records["keys"][key]): text for key, text in side["set"]} for side in records["sides"])
    assert first["environment", "torch"] == "'2.13.0'"
    assert first["arguments", "lr"] == "0.1"
    assert first["metadata", "note"] == "hand made"
    assert second["environment", "host"] == "'node20'"
    assert ("environment", "torch") not in second
    assert ("arguments", "lr") not in second


def test_a_checkpoint_whose_state_is_lost_still_shows_its_manifest(tmp_path: Path) -> None:
    first = commit(tmp_path / "run", 10)
    commit(tmp_path / "run", 20)
    (first / "state.json").write_text("{}")
    with opened_subject(f"{tmp_path}/run", datetime.datetime.now(datetime.UTC)) as subject:
        side = page_data(subject, {})["records"]["sides"][0]
    assert side["set"]
    with opened_subject(f"{tmp_path}/run@step=10", datetime.datetime.now(datetime.UTC)) as subject:
        data = page_data(subject, {})
    assert data["tensors"] is None
    assert "can't be read" in data["notes"][0]


def test_a_picture_is_a_byte_a_cell() -> None:
    picture = Thumbnail(1, 4, (1.0, None, 0.0, -2.0))
    data = tensor_data([(("w",), tensor(1, 4))], {0: TensorStats(count=4, thumbnail=picture)}, "")
    rows, columns, top, packed = data["stats"]["thumbnail"][0]
    assert (rows, columns, top) == (1, 4, 2.0)
    assert list(base64.b64decode(packed)) == [127 + 64, 255, 127, 0]


def test_changes_follow_the_tensors_that_are_shown() -> None:
    changes = Changes((1, 2), ("gone", "w"), ((1.0,), (0.5,)), ((1.0, 1.0), (float("inf"), None)))
    data = page_data(Subject("net.pt"), {}, changes=changes)
    assert data["changes"] is None, "none of them is shown"


def test_checkpoints_are_chosen_evenly() -> None:
    listed = [Listed(step, "") for step in range(100)]
    chosen = [one.step for one in spread(listed, 5)]
    assert chosen == [0, 24, 49, 74, 99]
    assert spread(listed[:3], 5) == listed[:3]


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def contrast(one: str, other: str) -> float:
    """As WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {'])
def test_text_can_be_read(theme: str) -> None:
    style = (ASSETS / "page.css").read_text()
    colour = colours(style[style.index(theme) :].split("}")[0])
    pairs = [("ink", "bg"), ("ink", "surface"), ("muted", "bg"), ("muted", "surface"), ("muted", "sunken")]
    pairs += [("accent", "surface"), ("accent", "select"), ("bad", "bad-bg"), ("warn", "warn-bg"), ("good", "bg")]
    wrong = [f"{one} on {other}: {contrast(colour[one], colour[other]):.2f}" for one, other in pairs
             if contrast(colour[one], colour[other]) < 4.5]  # fmt: skip
    assert not wrong


def test_both_ways_to_the_dark_theme_have_the_same_colours() -> None:
    style = (ASSETS / "page.css").read_text()
    ways = [
        style[style.index(start) :].split("}")[0]
        for start in (':root:not([data-theme="light"])', ':root[data-theme="dark"] {')
    ]
    assert colours(ways[0]) == colours(ways[1]) != {}


def test_the_sources_of_the_page_can_be_read() -> None:
    """As the Python files: short lines, short files."""
    for file in ASSETS.iterdir():
        lines = file.read_text().splitlines()
        assert len(lines) <= 450, file.name
        assert not [at for at, line in enumerate(lines, 1) if len(line) > 120], file.name
