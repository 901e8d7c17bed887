"""The docs say what is so: every link, command, flag and test that they name is there."""

import re
from pathlib import Path

import pytest

from command_flags import FLAG, flags_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_name
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@by_name
def test_every_flag_of_a_command_is_one_of_its_flags(page):
    text = page.read_text().replace("\\\n", "")  # a command may go on in the next line
    for command, words in re.findall(r"tvkd (serve|prefetch|train|show|demo)\b((?: [^\n`#]*)?)", text):
        assert [flag for flag in FLAG.findall(words) if flag not in flags_of(command)] == []


@by_name
def test_every_make_target_is_one_of_the_makefile(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^    |`)make ([a-z]+)", page.read_text(), re.MULTILINE)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_test_that_guards_a_promise_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "promises.md").read_text()))
    there = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20 and named <= there
