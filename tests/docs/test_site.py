"""docs/ as a site: built without a warning, every link leads somewhere, and nothing is asked of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import holdfast
from holdfast.cli.main import VERBS
from tests.docs.pages import ROOT, blocks, pages
from tests.docs.test_docstrings import documented

pytestmark = pytest.mark.timeout(300)  # building takes ten seconds on a machine that is free

WRITTEN = [*pages(), "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"]
"""What is read on a code host."""
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""What a browser fetches by itself."""
LINK = re.compile(r"!?\[(?:[^\][]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?\)")


class Page(HTMLParser):
    """What a page of HTML links to, what it loads, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.places |= {found["id"]} if "id" in found else set()
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if LOADED.get(tag, "") in found:
            self.loads.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built without a warning."""
    pytest.importorskip("furo", reason="the site is built with the dev extra")
    out = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return out


@pytest.fixture(scope="module")
def site(built: Path) -> dict[str, Page]:
    """Every page of the site by its path."""
    return {path.relative_to(built).as_posix(): Page(path) for path in built.rglob("*.html")}


def target(page: str, link: str) -> tuple[str, str]:
    """The file and the place in it that a link of a page leads to."""
    to = urlsplit(link)
    path = os.path.normpath(os.path.join(os.path.dirname(page), unquote(to.path))) if to.path else page
    return path, unquote(to.fragment)


def is_external(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def test_every_page_is_reached_from_the_first(site: dict[str, Page]) -> None:
    seen: set[str] = set()
    ahead = ["index.html"]
    while ahead:
        page = ahead.pop()
        if page not in seen and page in site:
            seen.add(page)
            ahead += [target(page, link)[0] for link in site[page].links if not is_external(link)]
    written = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")}
    assert {re.sub(r"md$", "html", page) for page in written} <= seen


def test_every_link_of_the_site_leads_somewhere(built: Path, site: dict[str, Page]) -> None:
    for page, found in site.items():
        for link in found.links:
            if not is_external(link):
                to, place = target(page, link)
                assert (built / to).is_file(), f"{page}: {link}"
                assert not place or place in site[to].places, f"{page}: {link}"


def test_nothing_is_asked_of_the_network(built: Path, site: dict[str, Page]) -> None:
    assert [(page, load) for page, found in site.items() for load in found.loads if is_external(load)] == []
    for style in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def slug(heading: str) -> str:
    """The name by which a code host calls a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def places(page: str) -> set[str]:
    """The places that a page names, and its headings; the second of one name has ``-1`` behind it."""
    found = re.findall(r'<a id="([^"]+)">', (ROOT / page).read_text(encoding="utf-8"))
    for block in blocks(page):
        if block.kind == "heading":
            name = slug(block.text)
            found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def links(page: str) -> list[str]:
    """The links of a page of Markdown, without what stands in its blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return LINK.findall(re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", WRITTEN)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for link in links(page):
        if is_external(link):
            to = urlsplit(link)
            assert to.scheme == "https", f"{page}: {link}"
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", to.netloc), f"{page}: {link}"
        else:
            path, place = target(page, link)
            assert (ROOT / path).exists(), f"{page}: {link}"
            assert not place or place in places(path), f"{page}: {link}"


def test_a_link_to_nothing_is_seen() -> None:
    assert "entriesjson" in places("docs/format.md")
    assert "no-such-place" not in places("docs/format.md")
    assert target("docs/a.md", "../examples/b.py#c") == ("examples/b.py", "c")
    assert is_external("//example.org/a.js")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_shown(verb: str) -> None:
    assert any(f"holdfast {verb}" in (ROOT / page).read_text(encoding="utf-8") for page in pages())


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: holdfast\.([\w.]+)$", text, re.MULTILINE))
    assert shown - {"errors"} == {*documented(), "compat", "surgery"} - {"HoldfastError"}
    assert "automodule:: holdfast.errors\n   :members:" in text
