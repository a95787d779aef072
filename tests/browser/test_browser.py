"""A real browser: every notebook in JupyterLab, all its cells, a control that is moved; and the pages at two widths.

Not part of `make test` or `make test-full`: `make test-browser` runs it, and needs Chromium with its driver. The walkthroughs and
the readers of tables run with their defaults, into folders of their own; the ablations at smoke scale. Screenshots are kept in
results/local/browser/.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from papermill.parameterize import parameterize_notebook

from replication.names import ROOT
from replication.notebooks import notebook_names, parameters

webdriver = pytest.importorskip("selenium.webdriver", reason="the extra browser is not installed: `make test-browser` does")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

pytestmark = pytest.mark.browser
FOLDER = ROOT / "notebooks"
OUT = ROOT / "results" / "local" / "browser"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--hide-scrollbars"]
#: Seconds for all cells of one notebook: a walkthrough trains for under a minute and must end within three.
LIMIT = 180
DONE = "return Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')).map(e => e.textContent.trim())"
FAULT = '[data-mime-type="application/vnd.jupyter.error"]'
ERRORS = f"return Array.from(document.querySelectorAll('{FAULT}')).map(e => e.textContent)"
#: No news, no look for updates, and every cell in the page, so that all can be seen at once.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.fail("Chromium and its driver are not on the PATH: install the packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1280,1000"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on loopback over copies of the notebooks; gives the address up to the notebook's name, and the token."""
    shutil.rmtree(OUT, ignore_errors=True)
    copies = OUT / "notebooks"
    copies.mkdir(parents=True)
    for name in notebook_names():
        profile = "smoke" if name.startswith("1") else "nano"
        given = {"results_dir": f"../{profile}"} | ({"profile": "smoke"} if profile == "smoke" else {})
        known = {key: value for key, value in given.items() if key in parameters(name)}
        copy = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        copy.metadata["papermill"] = {}
        for cell in copy.cells:
            cell.metadata.setdefault("tags", [])
        nbformat.write(parameterize_notebook(copy, known) if known else copy, copies / f"{name}.ipynb")
    home = tmp_path_factory.mktemp("jupyter")
    for place, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{place}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += [f"--IdentityProvider.token={token}", f"--notebook-dir={copies}"]
    places = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "work", "JUPYTER_CONFIG_DIR": "config"}
    env = os.environ | {name: str(home / folder) for name, folder in places.items()} | {"JUPYTER_PREFER_ENV_PATH": "1"}
    with open(OUT / "jupyterlab.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=copies)
    try:
        address = f"http://127.0.0.1:{port}"
        up = f"{address}/api?token={token}"
        _wait(lambda: server.poll() is None and _answers(up), 60, f"JupyterLab: see {OUT}/jupyterlab.log")
        yield f"{address}/lab/workspaces/NAME/tree/NAME.ipynb?token={token}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _wait(condition, seconds: float, what: str):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.5)
    pytest.fail(f"after {seconds:.0f} s still waiting for {what}")


def _click(browser, xpath: str) -> None:
    element = _wait(lambda: next((e for e in browser.find_elements(By.XPATH, xpath) if e.is_displayed()), None), 60, xpath)
    ActionChains(browser).move_to_element(element).click().perform()


def _run_all(browser) -> float:
    """Run -> Run All Cells, as a reader does; returns the seconds until every cell has its number."""
    _wait(lambda: "Idle" in browser.page_source, 90, "the kernel")
    started = time.monotonic()
    _click(browser, "//li[contains(@class,'lm-MenuBar-item')]//div[text()='Run']")
    _click(browser, "//div[contains(@class,'lm-Menu-itemLabel') and text()='Run All Cells']")

    def finished() -> bool:
        errors = browser.execute_script(ERRORS)
        assert not errors, f"a cell shows an error: {errors[0][-1500:]}"
        prompts = browser.execute_script(DONE)
        return bool(prompts) and all(prompt.strip("[]:").isdigit() for prompt in prompts)

    _wait(finished, LIMIT, "all cells")
    return time.monotonic() - started


def _screenshot(browser, name: str, width: int, height: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    browser.execute_script("document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => { e.scrollTop = 0 })")
    time.sleep(1.0)
    browser.save_screenshot(str(OUT / f"{name}.png"))


@pytest.mark.parametrize("name", notebook_names())
def test_a_notebook_in_jupyterlab(name: str, browser, lab: str) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(lab.replace("NAME", name))
    seconds = _run_all(browser)
    with open(OUT / "seconds.txt", "a") as file:
        file.write(f"{name} {seconds:.0f}\n")
    assert "Error displaying widget" not in browser.page_source
    source = (FOLDER / f"{name}.ipynb").read_text()
    if "explore(" in source:
        _move_a_control(browser)
        assert not browser.execute_script(ERRORS)
    outer = "[...document.querySelectorAll('.jp-WindowedPanel-outer')]"
    height = browser.execute_script(f"return Math.max(...{outer}.map(e => e.scrollHeight))")
    _screenshot(browser, name, 1280, min(int(height) + 120, 15000))


def _move_a_control(browser) -> None:
    """Every picture with controls is drawn anew when one of them is moved."""
    boxes = browser.find_elements(By.XPATH, "//div[contains(@class,'widget-vbox')][.//img]")
    assert boxes, "there is no picture with controls"
    for box in boxes:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        before = _pixels(box)
        if handles := box.find_elements(By.CSS_SELECTOR, ".noUi-handle"):
            handles[0].send_keys(Keys.ARROW_LEFT)
        elif choices := box.find_elements(By.TAG_NAME, "select"):
            Select(choices[0]).select_by_index(1)
        else:
            box.find_element(By.CSS_SELECTOR, "input[type=checkbox]").click()
        _wait(lambda box=box, before=before: _pixels(box) != before, 20, "the picture to change")


def _pixels(box) -> str:
    """The bytes of a widget's image, whatever address the front end gives it."""
    image = box.find_element(By.TAG_NAME, "img")
    return box.parent.execute_async_script(
        "const done = arguments[1]; fetch(arguments[0].src).then(r => r.text()).then(done, () => done(''))", image
    )


PAGES = sorted((ROOT / "results" / "nano").glob("**/*.html"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_fits_the_screen(page: Path, width: int, browser) -> None:
    """Nothing but a table or figure in its own scroll box is wider than the screen."""
    OUT.mkdir(parents=True, exist_ok=True)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    height = browser.execute_script("return document.documentElement.scrollHeight")
    _screenshot(browser, f"page-{page.stem}-{width}", width, min(int(height), 15000))
    assert wide <= width, f"{page.name} is {wide} pixels wide on a screen of {width}"
