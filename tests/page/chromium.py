"""What a test asks of Chromium beside selenium's own: a width of the page, and the addresses that were asked for."""

import json


def resize(browser, width, height=900):
    """The page's own width in CSS pixels, which a window cannot be as narrow as."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def requests_of(browser):
    """The addresses that pages asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [found["params"]["request"]["url"] for found in messages if found["method"] == "Network.requestWillBeSent"]
