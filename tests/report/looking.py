"""One page that is open in a browser, and what went wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Looking:
    """An open page.

    Attributes:
        page: of playwright.
        trouble: console errors, script errors, violations of the page's policy and requests, as text.
    """

    def __init__(self, browser: Any, file: Path, where: str, expect_trouble: bool, options: dict[str, Any]) -> None:
        self._expect_trouble = expect_trouble
        self.trouble: list[str] = []
        self._context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
        self.page = self._context.new_page()
        self.page.set_default_timeout(8000)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("request", self._asked)
        self.page.on("dialog", lambda dialog: (self.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self._file = file
        self.page.goto(f"{file.as_uri()}#{where}")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.trouble.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if request.url.split("#")[0] != self._file.as_uri():
            self.trouble.append(f"request: {request.url[:200]}")

    def close(self) -> None:
        self._context.close()
        assert self._expect_trouble or not self.trouble, "\n".join(self.trouble)

    # ---- what is seen ----

    def text(self, selector: str = "main") -> str:
        return str(self.page.inner_text(selector))

    def rows(self) -> list[str]:
        """The names of the rows of the shown long table, top to bottom."""
        found = self.page.eval_on_selector_all(
            "[role=tabpanel]:not([hidden]) .space .row",
            "rows => rows.map(row => [row.offsetTop, row.querySelector('.path').title]).sort((a, b) => a[0] - b[0])",
        )
        return [name for _, name in found]

    def selected(self) -> str:
        return str(self.page.get_attribute(".row.selected .path", "title"))

    def where(self) -> dict[str, str]:
        """What the address says."""
        from urllib.parse import unquote

        parts = self.page.url.partition("#")[2].split("&")
        return {name: unquote(value) for name, _, value in (part.partition("=") for part in parts) if name}

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def tabs(self) -> list[str]:
        return [str(text) for text in self.page.locator("[role=tab]").all_inner_texts()]

    def style(self, selector: str, name: str) -> str:
        return str(
            self.page.eval_on_selector(selector, "(node, name) => getComputedStyle(node).getPropertyValue(name)", name)
        )
