"""README's request has README's answer from the real teacher, and its links are no dead ends in the package."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from running_server import start_server
from tvkd.demo.teacher import teacher_directory

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
STUDY = (ROOT / "docs/study.md").read_text()


def same(written, real):
    """Whether both are equal: numbers within 1e-3, digests in their length, since they depend on the conversion."""
    if isinstance(written, dict):
        return written.keys() == real.keys() and all(same(written[name], real[name]) for name in written)
    if isinstance(written, list):
        return len(written) == len(real) and all(map(same, written, real))
    if isinstance(written, float):
        return written == pytest.approx(real, abs=1e-3)
    if isinstance(written, str):
        return len(written) == len(real)
    return written == real


@pytest.mark.real
def test_the_request_in_readme_is_answered_as_it_says(tmp_path):
    block = re.search(r"<!-- curl -->(.*)<!-- /curl -->", README, re.DOTALL)[1]
    command, answer = re.findall(r"(curl .*?)\n\n(.*)", block, re.DOTALL)[0]
    server = start_server(teacher_directory(), tmp_path / "values")
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8077", server.url)], capture_output=True, text=True
    )
    server.kill()
    assert same(json.loads(answer), json.loads(done.stdout)), done.stdout


def test_what_students_earn_is_what_the_study_found():
    def rows(text: str, title: str) -> list[list[str]]:
        table = re.search(rf"^\| {title} .*?\n\n", text, re.MULTILINE | re.DOTALL)[0]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")[2:] if line]

    found = {arm: (reward, control, kl) for arm, reward, kl, _, _, control, _ in rows(STUDY, r"arm \| true reward")}
    written = [tuple(row[1:4]) for row in rows(README, "what small students earn, true reward known")]
    assert written == [found[arm] for arm in ("DPO", "tvkd", "soft-label", "token k=1", "token k=3")]


def test_the_package_s_description_has_no_link_that_leads_nowhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text, hooks = README, project["tool"]["hatch"]["metadata"]["hooks"]
    for change in hooks["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert "| Training | settings, value sources, metrics |" in text
    assert "[arXiv 2509.16965](https://arxiv.org/abs/2509.16965)" in text
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]*)\)", text))
