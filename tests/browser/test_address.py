"""The page's address and the browser's history: one entry for each view, with its own options."""

from __future__ import annotations

from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import RECORDED, find, follow, resize, wait

pytestmark = [pytest.mark.browser, pytest.mark.slow]

IDLE = "[data-testid=stSkeleton], [data-stale=true], [data-testid=stStatusWidget]"


def path(page: Chrome) -> str:
    return page.current_url.partition("?")[0].rpartition("/")[2]


def at(page: Chrome, wanted: str) -> None:
    """Wait for a view by its path, and until it is drawn."""
    wait(lambda: path(page) == wanted)
    settle(page)


def wait_for_option(page: Chrome, wanted: str) -> None:
    wait(lambda: wanted in page.current_url)


def text(page: Chrome) -> str:
    return str(page.find_element(By.TAG_NAME, "body").text)


def settle(page: Chrome) -> None:
    """Wait until no script of the page runs."""
    wait(lambda: not find(page, IDLE))


def open_page(page: Chrome, url: str) -> None:
    resize(page, 1280, 800)
    page.get(url)
    wait(lambda: len(find(page, ".db-card")) == 4)
    settle(page)


def test_back_goes_to_the_view_before(browser: Chrome, page_url: str, api: Any) -> None:
    open_page(browser, page_url)
    before = browser.execute_script("return history.length")
    views = ("Why", "Table", "Trust", "Deltas")
    for name in views:
        follow(browser, name)
        at(browser, name.lower())
        wait(lambda: "?" in browser.current_url)
    assert browser.execute_script("return history.length") == before + len(views)
    for name in ("trust", "table", "why", ""):
        browser.back()
        at(browser, name)
    wait(lambda: len(find(browser, ".db-card")) == 4)


def test_opening_the_page_leaves_one_entry(browser: Chrome, page_url: str, api: Any) -> None:
    browser.get("about:blank")
    before = browser.execute_script("return history.length")
    open_page(browser, page_url)
    assert browser.execute_script("return history.length") == before + 1


def test_a_view_keeps_no_option_of_another_one(browser: Chrome, page_url: str, api: Any) -> None:
    task, strategy = RECORDED
    browser.get(f"{page_url}/trust?task={task}&strategy={strategy}&favourites=mnli")
    wait(lambda: "Can you rely on its answers?" in text(browser))
    settle(browser)
    assert "strategy=" in browser.current_url
    follow(browser, "Table")
    wait(lambda: "Label a whole table" in text(browser))
    settle(browser)
    wait(lambda: "strategy=" not in browser.current_url)
    follow(browser, "Server")
    options = f"task={task}", "favourites=mnli"
    wait(lambda: all(option in browser.current_url for option in options))  # they are every view's
    assert path(browser) == "server"


def test_typing_and_clicking_at_once_stays_in_the_view(
    browser: Chrome, page_url: str, api: Any
) -> None:
    browser.get(f"{page_url}/why?task=cola")
    wait(lambda: "Is this an acceptable English sentence?" in text(browser))
    settle(browser)
    for number in range(5):
        area = find(browser, "textarea")[0]
        area.click()
        area.send_keys(Keys.CONTROL, "a")
        (button,) = [item for item in find(browser, "button") if item.text.startswith("Explain")]
        actions = ActionChains(browser, duration=0)
        actions.send_keys(f"the film number {number}").click(button).perform()
        wait_for_option(browser, f"number+{number}")
        assert path(browser) == "why"
    assert [item for item in find(browser, "button") if item.text.startswith("Explain")]
