"""The file of `tvkd preview --html`, in a real browser: its numbers are those of `--json`, and no data run as code."""

import json
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from chromium import requests_of, resize

pytest.importorskip("selenium", reason="the browser is driven by selenium, of the extra dev")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tvkd.cli import main as tvkd
from tvkd_shared.key import completion_keys
from tvkd_shared.record import Record
from tvkd_shared.store import open_store

TEACHER = "ab" * 16
HOSTILE = '</script><script>document.title="run"</script><img src=x onerror="document.title=1">$style${x}'
PAIRS = 150


@pytest.fixture(scope="module")
def written(tiny_teacher, tmp_path_factory):
    """The file and the JSON of a store of many pairs whose tokens, prompt and data set's name are hostile."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("report")
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.add_tokens([HOSTILE])
    tokenizer.save_pretrained(folder / "tokenizer")
    random = np.random.default_rng(0)
    texts = [[f"w{n % 100 + 8} " * int(random.integers(1, 12)) for _ in range(2)] for n in range(PAIRS)]
    texts[7] = [f"{HOSTILE} ", "w9 "]
    data = folder / "<img src=x>.jsonl"
    rows = [{"prompt": f"w{n % 100 + 8} {HOSTILE} ", "chosen": c, "rejected": r} for n, (c, r) in enumerate(texts)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with closing(open_store(folder / "store")) as store:
        for row in rows:
            ids = {name: tokenizer(text)["input_ids"] for name, text in row.items()}
            sides = [ids["chosen"] + [2], ids["rejected"] + [2]]
            store.put(
                TEACHER, list(zip(completion_keys(TEACHER, ids["prompt"], sides), map(record, sides), strict=True))
            )
    flags = ["--dataset", data, "--tokenizer", folder / "tokenizer", "--store", folder / "store"]
    return folder / "report.html", [str(flag) for flag in flags]


def record(completion):
    random = np.random.default_rng(sum(completion))
    V, q, H = (random.normal(0, 1, len(completion) + n).astype(np.float32) for n in (1, 0, 1))
    return Record.of({1.0: V + 9}, q, abs(H))


@pytest.fixture
def report(browser, written, capsys):
    path, flags = written
    assert tvkd(["preview", *flags, "--html", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    resize(browser, 1280)
    requests_of(browser), browser.get_log("browser")  # of other tests
    browser.get(f"file://{path}")
    return found


def texts(browser, selector):
    return [found.text.replace("−", "-") for found in browser.find_elements(By.CSS_SELECTOR, selector)]


def choose(browser, id, option):
    Select(browser.find_element(By.ID, id)).select_by_visible_text(option)


def test_the_table_has_the_numbers_of_the_json(report, browser):
    rows = [texts(row, "th, td") for row in browser.find_elements(By.CSS_SELECTOR, "#readings tbody tr")]
    assert [row[0] for row in rows] == list(report["readings"])
    for (_, agreement, interval, by_length, *_), r in zip(rows, report["readings"].values(), strict=True):
        assert agreement == f"{r['agreement']:.1%}"
        assert interval == " … ".join(f"{end:.1%}" for end in r["interval"])
        assert by_length == f"{r['length_correlation']:+.2f}"
    said = sum(len(r["warnings"]) for r in report["readings"].values())
    assert len(texts(browser, "#warnings li")) == said > 0
    (row,) = (texts(row, "td") for row in browser.find_elements(By.CSS_SELECTOR, "#cross-entropy tbody tr"))
    assert row == [f"{report['cross_entropy']['teacher'][side]:.3f}" for side in ("chosen", "rejected")]


def test_the_plots_have_the_numbers_of_the_json(report, browser):
    for name, r in report["readings"].items():
        choose(browser, "reading", name)
        titles = [bar.get_attribute("textContent") for bar in browser.find_elements(By.CSS_SELECTOR, "#histogram rect")]
        assert [int(re.search(r": ([\d,]+) pairs", title)[1].replace(",", "")) for title in titles] == r["histogram"][
            "counts"
        ]
        points = browser.find_elements(By.CSS_SELECTOR, "#by-length circle")
        assert [point.get_attribute("textContent") for point in points] == [
            f"{group['agreement']:.1%} of {group['pairs']} pairs" for group in r["by_length"]
        ]


def shown(browser):
    """(row, margin, length) of the pairs that are shown."""
    form = r"row (\d+) · margin ([+-][\d.]+) · (?:agrees|does not agree) · length ([+-]\d+)"
    found = [re.match(form, line).groups() for line in texts(browser, "article .numbers")]
    return [(int(row), float(margin), int(length)) for row, margin, length in found]


def test_pairs_are_sorted_and_more_are_shown_when_asked(report, browser):
    choose(browser, "reading", "entropy, γ 0, mean")
    orders = {
        "largest margin, of either sign": lambda pair: -abs(pair[1]),
        "strongest disagreement with the label": lambda pair: pair[1],
        "largest difference in length": lambda pair: -abs(pair[2]),
        "row of the data set": lambda pair: pair[0],
    }
    for order, key in orders.items():
        choose(browser, "order", order)
        assert len(shown(browser)) == 10 and shown(browser) == sorted(shown(browser), key=key)
    browser.find_element(By.ID, "more").click()
    assert len(shown(browser)) == 20
    held = int(re.search(r"holds (\d+)", texts(browser, "#held")[0])[1])
    assert 20 < held < PAIRS and f"Of {PAIRS} pairs" in texts(browser, "#held")[0]


def test_the_first_pairs_are_the_extreme_ones_of_all_the_data(report, browser, written):
    """By margins computed from the records alone, and by the sums of what is shown of each token."""
    from transformers import AutoTokenizer

    choose(browser, "reading", "entropy, γ 0, mean")
    tokenizer = AutoTokenizer.from_pretrained(written[1][3])
    rows = [json.loads(line) for line in Path(written[1][1]).read_text().splitlines()]
    sides = [[record(tokenizer(row[side])["input_ids"] + [2]) for side in ("chosen", "rejected")] for row in rows]
    margins = np.array([rejected.entropies[:-1].mean() - chosen.entropies[:-1].mean() for chosen, rejected in sides])
    for order, rank in (
        ("largest margin, of either sign", -abs(margins)),
        ("strongest disagreement with the label", margins),
    ):
        choose(browser, "order", order)
        first = [int(row) for row in np.argsort(rank, kind="stable")[:10]]
        assert [row for row, _, _ in shown(browser)] == first
        assert [margin for _, margin, _ in shown(browser)] == pytest.approx(margins[first].tolist(), abs=6e-4)
    psi = [
        [float(number) for number in texts(tokens, "span")]
        for tokens in browser.find_elements(By.CSS_SELECTOR, "article:first-child .tokens")
    ]
    assert np.mean(psi[0]) - np.mean(psi[1]) == pytest.approx(margins.min(), abs=0.011)


def test_no_text_of_the_data_runs_and_nothing_is_asked_of_the_network(report, browser, written):
    choose(browser, "order", "row of the data set")
    while browser.find_element(By.ID, "more").is_displayed():
        browser.find_element(By.ID, "more").click()
    assert browser.title == "tvkd preview" and not browser.find_elements(By.TAG_NAME, "img")
    assert any(HOSTILE in text for text in texts(browser, "article .prompt"))
    assert "<img src=x>.jsonl" in texts(browser, "#about")[0]
    assert [url for url in requests_of(browser) if not url.startswith("file:")] == []
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    assert written[0].read_text().count("<script") == 2


def test_no_label_of_a_plot_is_cut(report, browser):
    ends = """return [...document.querySelectorAll("svg text")].map((text) => [text.getBBox().x,
      text.getBBox().x + text.getBBox().width - text.ownerSVGElement.viewBox.baseVal.width])"""
    for name in report["readings"]:
        choose(browser, "reading", name)
        found = browser.execute_script(ends)
        assert len(found) > 10 and all(left >= 0 and beyond <= 0 for left, beyond in found)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(report, browser, width):
    resize(browser, width)
    sizes = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert (sizes[0] <= width, sizes[1]) == (True, width)


def test_a_folder_that_is_not_there_is_one_line(written, capsys):
    assert tvkd(["preview", *written[1], "--html", "nowhere/report.html"]) == 2
    assert "nowhere/report.html is in a folder that does not exist" in capsys.readouterr().err
