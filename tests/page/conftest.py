"""A real Chromium without a window."""

import shutil

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium of the machine, by selenium. No other address than this machine's can be reached from it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium or chromedriver is not installed: `make deploy-tools` installs them")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new",
        "no-sandbox",  # as root, in a container
        "disable-dev-shm-usage",
        "disable-gpu",
        "disable-background-networking",
        "disable-component-update",
        "no-first-run",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driven = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield driven
    driven.quit()
