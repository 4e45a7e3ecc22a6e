"""A reader opens a notebook in JupyterLab, in a real browser, and runs it from top to bottom."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from fake_records import write_records

from bloodcell_lib import paths

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")
TOKEN = "a-token-for-this-test"


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on copies of the notebooks, outside the repository, with a published part of a study; its address."""
    write_records(tmp_path / "results" / "cpu", ["main", "no_se"], seeds=(0, 1))
    write_records(tmp_path / "results" / "cpu", ["simple_cnn"], seeds=(0,))
    shutil.copytree(paths.NOTEBOOKS, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(".*"))
    env = os.environ | {
        "BLOODCELL_RESULTS": str(tmp_path / "results"),
        "BLOODCELL_RUNS": str(tmp_path / "runs"),
        "BLOODCELL_RAW": str(tmp_path / "raw"),
        "BLOODCELL_CACHE": str(tmp_path / "cache"),
        "BLOODCELL_DATA": "",
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    command += [
        f"--IdentityProvider.token={TOKEN}",
        f"--notebook-dir={tmp_path / 'elsewhere'}",
        "--expose-app-in-browser",
    ]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield address_of(tmp_path / "runtime", server)
    finally:
        server.terminate()
        server.wait(timeout=30)


def address_of(runtime, server) -> str:
    for _ in range(300):
        for path in runtime.glob("jpserver-*.json"):
            url = json.loads(path.read_text())["url"]
            try:
                urllib.request.urlopen(f"{url}api?token={TOKEN}", timeout=5)
                return url
            except OSError:
                break
        assert server.poll() is None, "JupyterLab did not start"
        time.sleep(0.2)
    pytest.fail("JupyterLab did not answer within a minute")


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1400,2000")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    # A page that is nobody's focus has no current notebook; a reader's has.
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    yield driver
    driver.quit()


CELLS = """
const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
if (!panel || !panel.content || !panel.content.model || !panel.sessionContext) return null;
const kernel = panel.sessionContext.session && panel.sessionContext.session.kernel;
const cells = Array.from(panel.content.model.cells).filter(cell => cell.type === 'code').map(cell => cell.toJSON());
return {status: kernel ? kernel.status : 'none', cells: cells};
"""


@pytest.mark.parametrize(
    ("name", "figures"), [("01_data_exploration", 2), ("03_ablations", 2), ("04_evaluation", 3), ("05_figures", 8)]
)
def test_a_notebook_runs_in_jupyterlab(lab, browser, name, figures):
    browser.get(f"{lab}lab/tree/{name}.ipynb?token={TOKEN}")
    wait_for(browser, lambda state: state["status"] == "idle" and state["cells"], 90)
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    state = wait_for(browser, lambda state: state["cells"][-1]["execution_count"] and state["status"] == "idle", 240)
    outputs = [output for cell in state["cells"] for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in state["cells"])
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= figures, "figures are shown"


def wait_for(browser, ready, seconds: float):
    deadline = time.monotonic() + seconds
    state = None
    while time.monotonic() < deadline:
        state = browser.execute_script(CELLS)
        if state and ready(state):
            return state
        time.sleep(0.5)
    pytest.fail(f"the notebook was not ready after {seconds} s: {str(state)[:500]}")
