"""axe-core finds nothing serious on any view.

axe-core comes from npm into a folder of the tests; without npm or its registry they are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from typing import Any

import pytest
from selenium.webdriver import Chrome

from tests.browser.conftest import RECORDED, find, resize, scheme, wait

pytestmark = [pytest.mark.browser, pytest.mark.slow]

AXE = "axe-core@4.14.1"
NPM_TIMEOUT_S = 120
# Colors are Streamlit's, and its tables are drawn on a canvas with a hidden copy of its own.
RUN_AXE = """
const done = arguments[0];
axe.run(document, {runOnly: ["wcag2a", "wcag2aa"]}).then(found => done(found.violations
  .filter(each => ["serious", "critical"].includes(each.impact))
  .map(each => each.id + ": " + each.nodes.slice(0, 3).map(node => node.html).join(" | "))));
"""
VIEWS = {
    "": "Is this an acceptable English sentence?",
    "why": "Is this an acceptable English sentence?",
    "table": "Label a whole table",
    "trust": "Can you rely on its answers?",
    "benchmark": "What a small delta costs, and what it reaches",
    "deltas": "Deltas on this server",
    "server": "The server now",
}


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here, which fetches axe-core (Debian: npm)")
    folder = tmp_path_factory.mktemp("axe")
    try:
        command = [npm, "pack", "--silent", AXE]
        subprocess.run(command, cwd=folder, check=True, timeout=NPM_TIMEOUT_S, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm can't fetch {AXE} ({type(error).__name__})")
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def open_view(page: Chrome, url: str, view: str) -> None:
    """Open a view and wait until it is drawn."""
    task, strategy = RECORDED
    page.get(f"{url}/{view}?task={task}&strategy={strategy}")
    wait(lambda: VIEWS[view] in [heading.text for heading in find(page, "h2")])
    # Streamlit fades its own Stop button in and out while a script runs.
    busy = "[data-testid=stSkeleton], [data-stale=true], [data-testid=stStatusWidget]"
    wait(lambda: not find(page, busy))


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(browser: Chrome, page_url: str, axe: str, view: str) -> None:
    resize(browser, 1400, 900)
    for value in ("light", "dark"):
        scheme(browser, value)
        open_view(browser, page_url, view)
        browser.execute_script(axe)
        found: list[Any] = browser.execute_async_script(RUN_AXE)
        assert not found, "\n".join(found)


@pytest.mark.parametrize("view", VIEWS)
def test_the_views_fit_a_phone(browser: Chrome, page_url: str, view: str) -> None:
    resize(browser, 400, 860)
    scheme(browser, "light")
    open_view(browser, page_url, view)
    script = "return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    wait(lambda: browser.execute_script(script) <= 400)
    resize(browser, 1280, 800)


def test_a_slider_and_a_table_are_used_by_keyboard(browser: Chrome, page_url: str) -> None:
    resize(browser, 1400, 900)
    open_view(browser, page_url, "trust")
    # A range input has the role of a slider without an attribute that says so.
    handle = "[data-testid=stSlider] input[type=range], [data-testid=stSlider] [role=slider]"
    wait(lambda: find(browser, handle))[0].send_keys("\ue014" * 5)  # the right arrow
    shown = "At 0.05"
    wait(lambda: shown in str(browser.find_element("tag name", "body").text))


def test_the_server_view_renews_itself(browser: Chrome, page_url: str, api: Any) -> None:
    resize(browser, 1400, 900)
    open_view(browser, page_url, "server")
    body = lambda: str(browser.find_element("tag name", "body").text)  # noqa: E731
    wait(lambda: "Source:" in body() and "second reading" not in body())
    api.stop()
    try:
        wait(lambda: "does not answer" in body())
    finally:
        api.start()
    wait(lambda: "does not answer" not in body() and "Rows per second" not in body()[:1])
