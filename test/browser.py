"""A headless Chromium for tests of pages; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

FLAGS = ["--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# What software rendering and viser's own libraries say; none of it is an error.
HARMLESS = ("GPU stall", "THREE.Clock", "GroupMarkerNotSet")
LOADING_MS = 60_000
NO_NOTIFICATIONS = "[class*=Notifications-root], [class*=Notification-root], #mirage-walk { visibility: hidden !important }"


def require() -> str:
    """The path of a Chromium; skips the test where there is none, or no playwright or viser."""
    pytest.importorskip("viser", reason="needs the package viser: pip install 'mirage_ros[studio]'")
    pytest.importorskip("playwright", reason="needs the package playwright: pip install 'mirage_ros[dev]'")
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    return found


@contextmanager
def launched() -> Iterator:
    """A browser with a fresh profile."""
    path = require()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page with what its console said."""

    def __init__(self, browser, url: str, size=(1000, 700), **options) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.response = self.page.goto(url, timeout=LOADING_MS)

    def close(self) -> None:
        self.context.close()

    def _said(self, message) -> None:
        if message.type == "error" and not any(word in message.text for word in HARMLESS):
            self.errors.append(message.text)

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_role("combobox", name=label).or_(self.page.get_by_label(label)).first.click()
        self.page.get_by_role("option", name=option).click()

    def hold(self, key: str, ms: int) -> None:
        self.page.keyboard.down(key)
        self.page.wait_for_timeout(ms)
        self.page.keyboard.up(key)

    def wait_for(self, what, seconds: float = 30.0):
        """The first value of `what()` that is true."""
        for _ in range(int(seconds * 20)):
            if value := what():
                return value
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{what} did not come true within {seconds:g} s")

    def says(self, words: str, seconds: float = 30.0) -> None:
        """Waits until the page shows some words."""
        self.page.get_by_text(words).first.wait_for(timeout=seconds * 1000)

    def boxes(self, *selectors: str) -> list[tuple[float, ...]]:
        """Left, top, width and height of the first of each."""
        found = [self.page.locator(selector).first.bounding_box() for selector in selectors]
        return [tuple(box[side] for side in ("x", "y", "width", "height")) for box in found]

    def settled(self, *selectors: str) -> bool:
        """Whether these stay where they are."""
        before = self.boxes(*selectors)
        self.page.wait_for_timeout(400)
        return self.boxes(*selectors) == before

    def shot(self, style: str = "") -> np.ndarray:
        """The whole page, (h, w, 3) RGB."""
        data = np.frombuffer(self.page.screenshot(style=style), np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]

    def canvas(self) -> np.ndarray:
        """What the 3D view shows, without the notifications and buttons that lie over it."""
        box = self.page.locator("canvas").first.bounding_box()
        left, top, width, height = (int(round(box[side])) for side in ("x", "y", "width", "height"))
        return self.shot(NO_NOTIFICATIONS)[top : top + height, left : left + width]
