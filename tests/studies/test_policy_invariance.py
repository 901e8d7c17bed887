"""Policy invariance, exactly: where the published loss has its minimum, and when that is DPO's."""

import re
from pathlib import Path

import pytest

from studies.policy_invariance import ALPHA, READINGS, Problem, main

TOLERANCE = 1e-5
"""Of log π; the search for the minimum ends near 1e-6."""


@pytest.mark.parametrize(("gamma", "terminal"), READINGS)
def test_the_student_learns_the_reward_less_the_shaping(gamma, terminal):
    problem = Problem.random(1)
    shaped = problem.shaped(gamma, terminal)
    claimed = problem.optimum(problem.reward - ALPHA * shaped)
    assert (problem.minimum(shaped) - claimed).abs().max() < TOLERANCE


@pytest.mark.parametrize(("gamma", "terminal"), READINGS)
def test_dpos_optimum_is_kept_only_where_the_shaping_vanishes(gamma, terminal):
    problem = Problem.random(1)
    found = problem.minimum(problem.shaped(gamma, terminal))
    kept = (found - problem.optimum(problem.reward)).abs().max() < TOLERANCE
    assert kept == ((gamma, terminal) == (1.0, "zero"))
    assert problem.objective(found) <= problem.objective(problem.optimum(problem.reward)) + TOLERANCE


def test_the_page_shows_what_the_script_prints(capsys):
    page = (Path(__file__).parent.parent.parent / "docs" / "study.md").read_text()
    main()
    row = re.compile(r"^ *([\d.]+)  ([a-z-]+) +([\d.]+) +\S+ +\S+ +([\d.]+)$", re.MULTILINE)
    printed = row.findall(capsys.readouterr().out)
    assert len(printed) == len(READINGS) and row.findall(page) == printed
