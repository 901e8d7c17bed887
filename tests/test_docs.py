"""The docs agree with the code: every link, command, flag, file, test and worked number that they name is right."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from command_flags import FLAG, flags_of
from tvkd_shared.objective import Objective
from tvkd_shared.shaping import Aggregate, Form, Potential, Recipe, Shaping, Terminal, shaping
from tvkd_shared.value import value

ROOT = Path(__file__).parent.parent
PAGES = [page for folder in (".", "docs", "examples/*") for page in sorted(ROOT.glob(f"{folder}/*.md"))]
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_name
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@by_name
def test_every_flag_of_a_command_is_one_of_its_flags(page):
    text = page.read_text().replace("\\\n", "")  # a command may go on in the next line
    for command, words in re.findall(
        r"tvkd (serve|prefetch|train|preview|eval|study|show|demo)\b((?: [^\n`#]*)?)", text
    ):
        assert [flag for flag in FLAG.findall(words) if flag not in flags_of(command)] == []


@by_name
def test_every_make_target_is_one_of_the_makefile(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_test_that_guards_a_promise_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "promises.md").read_text()))
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20 and sorted(named - defined) == []


def test_every_file_that_the_page_on_changes_names_exists():
    text = (ROOT / "docs" / "changing.md").read_text()
    files = re.findall(r"`((?:shared|server|client|command|tests|docs|examples|scripts)/[\w./-]+)`", text)
    assert len(files) > 30
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_a_stored_column_touches_at_most_four_code_files():
    text = (ROOT / "docs" / "changing.md").read_text()
    steps = re.search(r"## Add a stored column\n(.*?)\n\nThe store", text, re.DOTALL)[1]
    assert 1 <= len(set(re.findall(r"`([\w/]+\.py)`", steps))) <= 4


@pytest.mark.parametrize("choice", [Objective, Potential, Terminal, Aggregate, Form, Recipe])
def test_every_choice_of_a_loss_is_explained_wherever_the_others_are(choice):
    training, definitions = ((ROOT / "docs" / name).read_text() for name in ("training.md", "definitions.md"))
    example, names = (ROOT / "client" / "tvkd_client" / "tvkd.yaml").read_text(), get_args(choice)
    assert [name for name in names if f"`{name}`" not in training] == []
    assert [name for name in names if not re.search(rf"`([a-z]+: )?{name}`", definitions)] == []
    assert f"# {' | '.join(names)}\n" in example


def test_the_help_names_every_potential():
    text = Shaping.__dataclass_fields__["potential"].metadata["help"]
    assert [name for name in get_args(Potential) if name not in text] == []


def test_the_list_of_files_is_current():
    current = runpy.run_path(str(ROOT / "scripts" / "file_list.py"))["file_list"]()
    assert (ROOT / "docs" / "files.md").read_text() == current, "run python scripts/file_list.py"


def test_the_worked_number_is_that_of_the_code():
    text = (ROOT / "docs" / "definitions.md").read_text()
    logits = re.findall(r"V\([^)]*\)\s+= logsumexp\((.*?)\) = (\S+)", text)
    before, chosen, rejected = [float(value([float(number) for number in row.split(",")])) for row, _ in logits]
    gamma = float(re.search(r"γ is a discount; here it is ([\d.]+\d)", text)[1])
    psi_B, psi_C = [float(shaping([before, after], gamma=gamma, terminal="state")[0]) for after in (chosen, rejected)]
    written = [float(number) for _, number in logits]
    written += [float(number.replace("−", "-")) for number in re.findall(r"(?:ψ\(\w\)|margin) = .* = (\S+)\n", text)]
    assert written == [round(number, 2) for number in (before, chosen, rejected, psi_B, psi_C, psi_B - psi_C)]


def test_no_page_has_a_number_that_is_still_to_be_measured():
    assert [page.name for page in PAGES if re.search(r"^[A-Z]+_[A-Z_]+$", page.read_text(), re.MULTILINE)] == []


def test_the_citation_names_this_version_and_its_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_no_two_test_files_have_one_name():
    names = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    # pytest imports each by its name alone, and ends at the second before it runs anything.
    assert [name for name in names if names.count(name) > 1] == []
