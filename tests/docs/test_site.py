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


def built(out: Path) -> dict[str, Page]:
    """Every page of the site by its path, built without a warning."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return {path.relative_to(out).as_posix(): Page(path) for path in out.rglob("*.html")}


def target(page: str, link: str) -> tuple[str, str]:
    """The file and the place in it that a link of a page leads to."""
    to = urlsplit(link)
    path = os.path.normpath(os.path.join(os.path.dirname(page), unquote(to.path))) if to.path else page
    return path, unquote(to.fragment)


def is_external(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def reached(site: dict[str, Page]) -> set[str]:
    """The pages that one comes to from the first one."""
    seen: set[str] = set()
    ahead = ["index.html"]
    while ahead:
        page = ahead.pop()
        if page not in seen and page in site:
            seen.add(page)
            ahead += [target(page, link)[0] for link in site[page].links if not is_external(link)]
    return seen


def leads_somewhere(out: Path, site: dict[str, Page], page: str, link: str) -> bool:
    path, place = target(page, link)
    return (out / path).is_file() and (not place or place in site[path].places)


def test_the_site_is_whole_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    """One test, so that it is built once."""
    site = built(tmp_path)
    written = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")}
    assert {re.sub(r"md$", "html", page) for page in written} - reached(site) == set()
    inside = [(page, link) for page, found in site.items() for link in found.links if not is_external(link)]
    assert [one for one in inside if not leads_somewhere(tmp_path, site, *one)] == []
    assert [(page, load) for page, found in site.items() for load in found.loads if is_external(load)] == []
    styles = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")}
    assert [name for name, text in styles.items() if re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text)] == []


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
    assert any(re.search(rf"holdfast {verb}\b", (ROOT / page).read_text(encoding="utf-8")) for page in pages())


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: holdfast\.([\w.]+)$", text, re.MULTILINE))
    assert shown - {"errors"} == {*documented(), "compat", "surgery"} - {"HoldfastError"}
    assert "automodule:: holdfast.errors\n   :members:" in text
