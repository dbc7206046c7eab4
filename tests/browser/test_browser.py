"""The page in a real headless Chromium: what only a browser can show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import find, follow, resize, scheme, wait

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def page(browser: Chrome, page_url: str, api: Any) -> Iterator[Chrome]:
    """The page after its first prediction, at the size of a small laptop, in the light theme."""
    resize(browser, 1280, 800)
    scheme(browser, "light")
    browser.get(page_url)
    wait(lambda: len(cards(browser)) == 4 and find(browser, "textarea"))
    yield browser
    resize(browser, 1280, 800)


def cards(page: Chrome) -> list[str]:
    return [card.text for card in find(page, ".db-card")]


def text(page: Chrome) -> str:
    return str(page.find_element(By.TAG_NAME, "body").text)


def ask_every_task(page: Chrome) -> None:
    (button,) = wait(lambda: [item for item in find(page, "button") if item.text == "Every task"])
    button.click()
    wait(lambda: len(cards(page)) == 2)


def type_text(page: Chrome, value: str, *keys: str) -> None:
    area = find(page, "textarea")[0]
    area.click()
    area.send_keys(Keys.CONTROL, "a")
    area.send_keys(value)
    if keys:
        area.send_keys(*keys)


def wait_for_text(page: Chrome, said: str) -> None:
    wait(lambda: said in text(page))


def typed(page: Chrome) -> str:
    return str(find(page, "textarea")[0].get_attribute("value"))


def test_the_first_view_shows_predictions(page: Chrome) -> None:
    assert typed(page), "an example is filled in"
    for strategy in ("bitfit", "layernorm", "random:0.05", "head"):
        assert any(card.startswith(strategy) for card in cards(page))
    first = find(page, ".db-card")[0]
    assert first.location["y"] < 800, "a prediction is in view without scrolling"
    assert "Deploy" not in text(page)


def test_nothing_is_fetched_from_elsewhere_and_nothing_fails(page: Chrome, page_url: str) -> None:
    for name in ("Why", "Table", "Trust", "Benchmark", "Try"):
        follow(page, name)
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    for name in page.execute_script(script):
        assert name.startswith((page_url, "data:", "blob:")), name
    severe = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


def test_typing_and_predicting(page: Chrome) -> None:
    before = cards(page)
    type_text(page, "zebra why not", Keys.CONTROL, Keys.ENTER)
    wait(lambda: cards(page) not in ([], before))
    by_key = cards(page)
    type_text(page, "the good film, the bad film")
    (button,) = [item for item in find(page, "button") if item.text.startswith("Predict")]
    button.click()
    wait(lambda: cards(page) not in ([], by_key))
    assert typed(page) == "the good film, the bad film"


def test_a_draft_survives_other_views(page: Chrome) -> None:
    ask_every_task(page)
    wait(lambda: len(find(page, "textarea")) == 2)
    type_text(page, "a draft that was not sent", Keys.TAB)  # which leaves the field
    wait(lambda: "The text has changed" in text(page))
    follow(page, "Benchmark")
    wait(lambda: find(page, ".db-legend"))
    wait(lambda: [item for item in find(page, "button") if item.text == "Download CSV"])
    follow(page, "Try")
    wait(lambda: len(find(page, "textarea")) == 2)
    assert typed(page) == "a draft that was not sent"


def test_a_reload_shows_the_same(page: Chrome) -> None:
    before = cards(page)
    type_text(page, "zebra, why not?", Keys.CONTROL, Keys.ENTER)
    answered = wait(lambda: found if (found := cards(page)) not in ([], before) else None)
    wait(lambda: "text=zebra" in page.current_url)
    page.refresh()
    wait(lambda: cards(page) == answered)
    assert typed(page) == "zebra, why not?"


def test_the_charts_of_a_delta_are_drawn_in_an_open_expander(page: Chrome) -> None:
    follow(page, "Trust")
    box = wait(lambda: find(page, "[data-testid=stExpanderDetails] [role=combobox]"))[0]
    box.click()
    (option,) = wait(
        lambda: [item for item in find(page, "[role=option]") if item.text == "layernorm"]
    )
    option.click()
    charts = "[data-testid=stExpanderDetails] [data-testid=stVegaLiteChart]"
    drawn = wait(lambda: len(found := find(page, f"{charts} canvas, {charts} svg")) == 3 and found)
    widths = [chart.size["width"] for chart in drawn]
    assert all(200 < width < 1280 for width in widths), widths
    assert "87 % were right" in text(page)
    resize(page, 390, 844)
    script = "return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    wait(lambda: page.execute_script(script) <= 390)


def test_a_click_on_a_cell_of_the_confusion_shows_its_rows(page: Chrome) -> None:
    follow(page, "Trust")
    box = wait(lambda: find(page, "[role=combobox][aria-label*='Delta to judge']"))[0]
    box.click()
    wait(lambda: [item for item in find(page, "[role=option]") if item.text == "layernorm"])[
        0
    ].click()
    # A canvas: the first line has the decisions, the first column the gold labels.
    grid = "[data-testid=stDataFrame] canvas"
    wait(lambda: "are decided as" in text(page) and find(page, grid))
    for right, down, said in (
        (0.85, 52, "labelled unacceptable are decided as acceptable."),
        (0.30, 87, "labelled acceptable are decided as unacceptable."),
        (0.30, 52, "labelled unacceptable are decided as unacceptable."),
    ):
        canvas = find(page, grid)[0]
        size = canvas.size
        x, y = size["width"] * (right - 0.5), down - size["height"] / 2
        ActionChains(page).move_to_element_with_offset(canvas, int(x), int(y)).click().perform()
        wait_for_text(page, said)


def test_the_server_goes_and_returns_while_someone_types(page: Chrome, api: Any) -> None:
    type_text(page, "half a")
    api.stop()
    try:
        wait(lambda: "does not answer" in text(page))
        assert "Not connected" in text(page)
        find(page, "textarea")[0].send_keys(" sentence")
        time.sleep(3)  # longer than the page's retry interval
        assert typed(page) == "half a sentence"
    finally:
        api.start()
    wait(lambda: "does not answer" not in text(page) and "Not connected" not in text(page))
    assert typed(page) == "half a sentence"
    before = cards(page)
    find(page, "textarea")[0].send_keys(Keys.CONTROL, Keys.ENTER)
    wait(lambda: cards(page) not in ([], before))


def test_a_page_opened_before_the_server_opens_by_itself(
    browser: Chrome, page_url: str, api: Any
) -> None:
    api.stop()
    try:
        browser.get(page_url)
        wait(lambda: "does not answer" in text(browser))
    finally:
        api.start()
    wait(lambda: len(cards(browser)) == 4)


def test_it_fits_a_phone(page: Chrome) -> None:
    resize(page, 390, 844)
    script = "return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    for name in ("Try", "Trust", "Benchmark", "Try"):
        follow(page, name)
        wait(lambda: page.execute_script(script) <= 390)
        # In one go: the page may redraw a card between two questions about it.
        edges = page.execute_script(
            "return [...document.querySelectorAll('.db-card')]"
            ".map(card => card.getBoundingClientRect()).map(box => [box.left, box.right])"
        )
        assert all(left >= 0 and right <= 390 for left, right in edges), edges


@pytest.mark.parametrize(("value", "is_dark"), [("light", False), ("dark", True)])
def test_the_theme_follows_the_system(
    page: Chrome, page_url: str, value: str, is_dark: bool
) -> None:
    scheme(page, value)
    page.get(page_url)
    wait(lambda: len(cards(page)) == 4)
    for css in ("[data-testid=stApp]", ".db-card"):
        color = page.execute_script(
            "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor", css
        )
        red = int(color.partition("(")[2].split(",")[0])
        assert (red < 64) == is_dark, f"{css} is {color}"


def test_everything_has_a_name_for_screen_readers(page: Chrome) -> None:
    def names() -> list[tuple[str, str]]:
        controls = find(page, "textarea, button, [role=tab], input")
        shown = [item for item in controls if item.is_displayed()]
        return [(item.accessible_name, item.get_attribute("outerHTML")) for item in shown]

    found = wait(names)  # begins anew if the page redraws meanwhile
    assert len(found) > 8
    assert not [html for name, html in found if not name]
    assert find(page, "[role=status]")[0].text.startswith("Connected")
    headings = [item.tag_name for item in find(page, "h1, h2, h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
