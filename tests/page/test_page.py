"""The page at `/` of a real server, in a real browser: it shows what the server answers, and asks nobody else."""

import httpx
import pytest
from chromium import requests_of, resize

pytest.importorskip("selenium", reason="the browser is driven by selenium, of the extra dev")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from running_server import start_server

PAIR = {"prompt": "w9 w10 ", "chosen": "w11 w12", "rejected": "w13 w14 w15 w16"}
DIGITS = {"psi": "+.2f", "log_probs": ".2f", "entropies": ".2f", "values": ".2f"}


class Page:
    """The page as a person uses it."""

    def __init__(self, browser, url):
        self.browser = browser
        self.wait = WebDriverWait(browser, 30)
        browser.get(f"{url}/")
        browser.execute_script("sessionStorage.clear()")
        browser.get(f"{url}/")
        self.until(lambda: self.find("#gamma") and not self.text("#health").startswith("○"))

    def until(self, holds):
        self.wait.until(lambda _: holds())

    def find(self, selector):
        found = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return found[0] if found else None

    def text(self, selector):
        return self.find(selector).text.replace("−", "-")

    def type(self, id, text):
        field = self.find(f"#{id}")
        field.clear()
        field.send_keys(text)

    def fill(self, **texts):
        for id, text in texts.items():
            self.type(id, text)
        Select(self.find("#kind")).select_by_value("text")
        if self.find("#eos").is_selected():
            self.find("#eos").click()

    def submit(self):
        self.find("button[type=submit]").click()
        self.until(lambda: not self.find("#pair").get_attribute("aria-busy"))

    def numbers(self, side):
        return [
            cell.text.replace("−", "-") for cell in self.browser.find_elements(By.CSS_SELECTOR, f"#{side}-tokens span")
        ]

    def choose(self, measure):
        self.find(f"input[value={measure}]").click()

    def agrees_with(self, answer):
        """Whether every number that is shown is the answer's, to the digits shown."""
        shown = {"margin": format(answer["margin"], "+.3f"), "weight": format(answer["weight"], ".3f")}
        if {id: self.text(f"#{id}") for id in shown} != shown:
            return False
        for side in ("chosen", "rejected"):
            assert f"{answer[side]['shaping']:+.3f} {answer[side]['length']}" in self.text(f"#{side}-sums")
            for measure, digits in DIGITS.items():
                self.choose(measure)
                assert self.numbers(side) == [format(number, digits) for number in answer[side][measure]]
        return True


@pytest.fixture
def page(browser, server):
    resize(browser, 1280)
    return Page(browser, server.url)


def api(server, **body):
    return httpx.post(f"{server.url}/v1/shaping", json=body, timeout=60).raise_for_status().json()


def test_the_server_is_described(page, server):
    teacher = httpx.get(f"{server.url}/v1/teacher").json()
    assert page.text("#health") == "ready"
    assert all(str(teacher[name]) in page.text("#facts") for name in ("name", "id", "dtype", "engine"))
    assert "stored completions" in page.text("#facts")


def test_a_typed_pair_shows_the_numbers_that_the_api_answers(page, server):
    page.fill(**PAIR)
    page.submit()
    assert page.agrees_with(api(server, **PAIR))


READINGS = {
    "gamma": 0.9,
    "temperature": 2.0,
    "potential": "renyi",
    "terminal": "zero",
    "aggregate": "mean",
    "form": "tpkd-ref",
}


@pytest.mark.parametrize("name", READINGS)
def test_a_switched_reading_counts_at_once(page, server, name):
    page.fill(**PAIR)
    page.submit()
    shaping = {name: READINGS[name]}
    if name in ("terminal", "form"):
        shaping |= {"gamma": 0.5}
    for choice, value in shaping.items():
        control = page.find(f"#{choice}")
        if control.tag_name == "select":
            Select(control).select_by_visible_text(value)
        else:
            page.type(choice, f"{value}{Keys.TAB}")
    page.until(lambda: page.agrees_with(api(server, **PAIR, shaping=shaping)))


def test_alpha_and_its_sign_say_what_the_margin_would_do(page, server):
    page.fill(**PAIR)
    page.submit()
    for alpha in (3.0, -3.0, 0.0):
        page.type("alpha", f"{alpha}{Keys.TAB}")
        answer = api(server, **PAIR, alpha=alpha)
        page.until(lambda answer=answer: page.text("#weight") == format(answer["weight"], ".3f"))
        said = "counts less" if answer["weight"] < 0.5 else "counts more" if answer["weight"] > 0.5 else "so does this"
        assert said in page.text("#effect")


def test_a_message_goes_through_the_template_of_the_teacher(page, server):
    page.fill(prompt="w9", chosen="w11", rejected="w12 w13")
    Select(page.find("#kind")).select_by_value("chat")
    page.submit()
    pair = {"prompt": [{"role": "user", "content": "w9"}], "chosen": "w11", "rejected": "w12 w13"}
    assert page.agrees_with(api(server, **pair))
    assert "<eos>" in page.text("#chosen-tokens")


def test_a_mistake_is_shown_as_the_problems_own_line(page, server):
    page.fill(**PAIR | {"chosen": "w9 " * 300})
    page.submit()
    answer = httpx.post(f"{server.url}/v1/shaping", json=PAIR | {"chosen": "w9 " * 300})
    assert page.text("#problem") == f"{answer.json()['detail']} (sequence-too-long)"
    assert not page.find("#result").is_displayed()
    page.fill(**PAIR)
    page.submit()
    assert page.find("#problem").text == "" and page.find("#result").is_displayed()


def test_a_key_is_asked_for_kept_in_the_tab_and_a_wrong_one_is_said(browser, tiny_teacher, tmp_path):
    keyed = start_server(tiny_teacher, tmp_path / "values", environment={"TVKD_API_KEY": "right"})
    try:
        page = Page(browser, keyed.url)
        assert "Authorization: Bearer" in page.text("#health") and "unauthorized" in page.text("#health")
        page.type("key", f"wrong{Keys.TAB}")
        page.fill(**PAIR)
        page.submit()
        assert "unauthorized" in page.text("#problem") and not page.find("#result").is_displayed()
        page.type("key", f"right{Keys.TAB}")
        page.until(lambda: page.text("#health") == "ready")
        page.submit()
        assert page.find("#result").is_displayed() and page.find("#problem").text == ""
        browser.refresh()
        page.until(lambda: page.text("#health") == "ready")
        assert "right" not in browser.current_url and page.find("#key").get_attribute("type") == "password"
    finally:
        keyed.kill()


def test_text_is_never_read_as_markup(page):
    hostile = '<img src=x onerror="document.title=1"> <script>document.title=2</script> '
    page.fill(prompt=hostile, chosen=hostile, rejected=f"w9 {hostile}")
    page.submit()
    assert page.find("#result").is_displayed() and page.browser.title == "tvkd"
    assert not page.find("main img, main script")
    assert page.find("#chosen-tokens b").text == "<img·src=x" or "<img" in page.text("#chosen-tokens")


def test_all_of_it_is_done_with_keys(page, server):
    page.fill(**PAIR)
    page.find("#rejected").send_keys(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page.find("#result").is_displayed())
    page.find("input[value=psi]").send_keys(Keys.ARROW_RIGHT)
    assert page.find("input[value=log_probs]").is_selected()
    page.browser.switch_to.active_element.send_keys(Keys.TAB)
    page.browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    answer = api(server, **PAIR)
    assert f"chosen, token 2 of {answer['chosen']['length']}" in page.text("#detail")
    page.browser.switch_to.active_element.send_keys(Keys.END, Keys.TAB)
    assert page.text("#detail").startswith("rejected, token 1 of 4")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(browser, server, width, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    resize(browser, width)
    page = Page(browser, server.url)
    page.fill(**PAIR | {"chosen": "w11 " * 60 + "x" * 120, "prompt": "w9" * 90 + " "})
    page.submit()
    sizes = "return [document.documentElement.scrollWidth, innerWidth, getComputedStyle(document.body).color]"
    scrolled, inner, ink = browser.execute_script(sizes)
    assert (scrolled <= inner, inner) == (True, width)
    assert (sum(map(int, ink[4:-1].split(","))) > 384) == (scheme == "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_asks_its_own_server_alone_and_weighs_little(page, server):
    requests_of(page.browser), page.browser.get_log("browser")  # of other tests
    page.browser.refresh()
    page.until(lambda: page.text("#health") == "ready")
    page.fill(**PAIR)
    page.submit()
    asked = set(requests_of(page.browser))
    assert f"{server.url}/v1/shaping" in asked
    assert {url for url in asked if not url.startswith((server.url, "data:"))} == set()
    files = [url for url in asked if "/static/" in url or url == f"{server.url}/"]
    assert len(files) == 6 and sum(len(httpx.get(url).content) for url in files) < 100_000
    assert [line for line in page.browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_its_headers_let_no_other_content_in(server):
    answer = httpx.get(f"{server.url}/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    missing = httpx.get(f"{server.url}/static/..%2Fpage.py")
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")
