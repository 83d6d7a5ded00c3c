"""Report pages in a real Chromium: everything is shown, light and dark, by keyboard and to a screen reader."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import family, pages
from optional_parts import need
from PIL import Image
from test_report_parts import cells

from fastresnet.report.palette import DARK, LIGHT
from fastresnet.report.sweep_page import write_sweep_report
from fastresnet.report.writing import Written
from fastresnet.sweep_table import write_table

need("chromium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

__all__ = ["family", "pages"]  # fixtures

MEASURE = (Path(__file__).parent / "measure_page.js").read_text("utf-8")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
KINDS = ("single", "both", "sweep")
AA_TEXT = 4.5
LEAST_TEXT = 9.0  # CSS pixels, of any text in a figure at 1280 pixels


class Browser:
    """A Chromium, and what it logged."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def show(self, page: Path, theme: str, width: int = 1280, whole: bool = True) -> None:
        """Load a page; ``whole`` makes the window as high as the page, so that every point of it can be asked."""
        self.driver.get_log("browser")
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self._resize(width, 800)
        self.driver.get(page.as_uri())
        if whole:
            self.driver.execute_script(
                "document.querySelectorAll('details').forEach((part) => (part.open = true))"
            )
            self._resize(width, self.driver.execute_script("return document.documentElement.scrollHeight"))

    def _resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def measured(self) -> dict[str, Any]:
        """Return what ``measure_page.js`` finds."""
        return self.driver.execute_script(MEASURE)

    def screenshot(self) -> np.ndarray:
        """Return the window as uint8 [H, W, 3]."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {})["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))

    def press(self, key: str) -> None:
        self.driver.switch_to.active_element.send_keys(key)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield Browser(driver)
    driver.quit()


@pytest.fixture(scope="module")
def shown(pages: dict[str, Written], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page."""
    folder = tmp_path_factory.mktemp("sweep")
    content = cells("r0-optimizers")
    content["rows"][0] |= {"accuracy": 0.02}  # a bar that is shorter than its label
    write_table(folder, content)
    return {kind: written.page for kind, written in pages.items()} | {
        "sweep": write_sweep_report(str(folder)).page
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_shown_and_can_be_read(
    browser: Browser, shown: dict[str, Path], kind: str, theme: str
) -> None:
    browser.show(shown[kind], theme)
    found = browser.measured()
    assert browser.driver.get_log("browser") == []
    assert found["resources"] == []
    palette = {"light": LIGHT, "dark": DARK}[theme]
    assert found["background"] == "rgb({}, {}, {})".format(*bytes.fromhex(palette["page"][1:]))
    assert len(found["figures"]) >= {"single": 4, "both": 11, "sweep": 1}[kind]
    for name, width, height, inside in found["figures"]:
        assert min(width, height) > 30 and inside > 0, name
    for name, width, height in found["tables"]:
        assert width > 100 and height > 30, name
    assert len(found["texts"]) > 50
    unread = [(text, ratio) for text, ratio, _ in found["texts"] if ratio < AA_TEXT - 0.01]
    assert unread == []
    assert min(size for _, _, size in found["texts"]) >= LEAST_TEXT
    assert found["overflow"] <= 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_a_telephone(browser: Browser, shown: dict[str, Path], kind: str) -> None:
    browser.show(shown[kind], "light", width=320)
    assert browser.measured()["overflow"] <= 0
    widths = browser.driver.execute_script(
        "return [...document.querySelectorAll('.wide .prose')].map((cell) => cell.getBoundingClientRect().width)"
    )
    assert bool(widths) == (kind == "sweep") and min(widths, default=200) >= 200  # remarks, a line of words


def test_light_and_dark_differ_in_every_figure(browser: Browser, shown: dict[str, Path]) -> None:
    shots = {}
    for theme in ("light", "dark"):
        browser.show(shown["single"], theme)
        boxes = browser.driver.execute_script(
            "return [...document.querySelectorAll('svg')].map((svg) => {"
            "const box = svg.getBoundingClientRect(); return [box.x, box.y, box.right, box.bottom].map(Math.round)})"
        )
        pixels = browser.screenshot()
        shots[theme] = [pixels[top:bottom, left:right] for left, top, right, bottom in boxes]
    assert len(shots["light"]) == 4
    for light, dark in zip(shots["light"], shots["dark"], strict=True):
        assert np.median(light) > 230 and np.median(dark) < 40  # the page shows through
        for pixels in (light, dark):
            assert np.ptp(pixels.astype(int).sum(2)) > 300  # and something is drawn on it


def test_a_page_is_used_by_keyboard(browser: Browser, shown: dict[str, Path]) -> None:
    browser.show(shown["single"], "light", whole=False)
    driver = browser.driver
    driver.find_element("tag name", "body").send_keys(Keys.TAB)
    focused = driver.switch_to.active_element
    assert focused.text == "Skip to the report" and focused.rect["y"] >= 0
    browser.press(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("id") == "main"
    seen = set()
    for _ in range(60):
        browser.press(Keys.TAB)
        focused = driver.switch_to.active_element
        if focused.tag_name == "body":
            break
        assert float(focused.value_of_css_property("outline-width").removesuffix("px")) >= 2, focused.tag_name
        assert focused.is_displayed()
        seen.add(focused.tag_name)
        if focused.tag_name == "summary" and focused.text == "Every layer":
            browser.press(Keys.ENTER)
            table = focused.find_element("xpath", "../div/table")
            assert table.is_displayed() and table.size["height"] > 100
    assert {"summary", "div"} <= seen


def test_a_screen_reader_is_told_of_everything(browser: Browser, shown: dict[str, Path]) -> None:
    browser.show(shown["single"], "light")
    browser.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            named.setdefault(node["role"]["value"], []).append(name)
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert len(named[landmark]) == 1, landmark
    assert {"Summary", "Curves", "Network", "Predictions", "Augmentation", "Times", "Recipe"} <= set(
        named["region"]
    )
    assert all(named["image"]) and len(named["image"]) > 20
    assert any("Accuracy by epoch" in name for name in named["image"])
    assert all(named["table"]) and any(name.startswith("Confusion matrix") for name in named["table"])
    assert named["columnheader"] and named["rowheader"] and "LayoutTable" not in named
    assert all(named["heading"]) and all(named["link"])
