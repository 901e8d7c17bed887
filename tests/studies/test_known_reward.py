"""The study with a known reward: its world, its intervals, and a whole small run that is stopped and goes on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studies.known_reward.models import log_probs, random_model, sample
from studies.known_reward.report import interval, table
from studies.known_reward.students import partners
from studies.known_reward.world import EOS, LONGEST, World
from tvkd.study.controls import LengthSource
from tvkd_shared.shaping import Shaping

ROOT = Path(__file__).parent.parent.parent


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded(*completions: list[int]) -> torch.Tensor:
    return torch.tensor([[*tokens, *[EOS] * (LONGEST - len(tokens))] for tokens in completions])


def test_a_completion_is_content_and_then_one_end():
    world = World(0)
    completions = world.behaviour(world.prompts(500, chance()), chance())
    lengths = world.is_token(completions).sum(1).tolist()
    assert min(lengths) > 1 and max(lengths) <= LONGEST
    for row, length in zip(completions.tolist(), lengths, strict=True):
        assert EOS not in row[: length - 1] and set(row[length - 1 :]) <= {EOS}


def test_the_reward_counts_each_token_away_from_the_wanted_length_and_each_repetition():
    world, prompt = World(0), torch.tensor([[5, 6, 7]])
    worth = {
        tuple(tokens): world.reward(prompt, padded(list(tokens))).item() for tokens in ([9, 8], [9, 8, 8], [9, 8, 4])
    }
    one = world._worth[world._topic[5], 0]
    wanted = int(world._wanted_length[7])
    step = -0.3 * (abs(3 - wanted) - abs(2 - wanted))
    assert worth[9, 8, 8] - worth[9, 8] == pytest.approx(one[8].item() - 0.5 + step, abs=1e-5)
    assert worth[9, 8, 4] - worth[9, 8] == pytest.approx(one[4].item() + step, abs=1e-5)


def test_labels_follow_bradley_and_terry():
    world, prompts = World(0), World(0).prompts(20_000, chance())
    first, second = (world.behaviour(prompts, chance(seed)) for seed in (1, 2))
    chosen, _ = world.preferences(prompts, first, second, chance(3))
    difference = world.reward(prompts, first) - world.reward(prompts, second)
    differ = (first != second).any(1)
    is_first = (chosen == first).all(1)[differ].float()
    assert is_first.mean() == pytest.approx(torch.sigmoid(difference[differ]).mean().item(), abs=0.02)
    assert is_first[difference[differ] > 3].mean() > 0.95


def test_samples_follow_the_probabilities_that_kl_is_measured_with():
    model = random_model(width=32, layers=1, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    prompts = torch.tensor([[5, 6, 7]]).repeat(4000, 1)
    completions = sample(model, prompts, seed=0)
    first = log_probs(model, prompts, completions)[:, 0]
    probability = {token: first[completions[:, 0] == token][0].exp().item() for token in completions[:, 0].tolist()}
    assert sum(probability.values()) == pytest.approx(1, abs=0.02)
    for token, expected in probability.items():
        assert (completions[:, 0] == token).float().mean() == pytest.approx(expected, abs=0.03)
    assert (completions[World.is_token(completions).sum(1) == LONGEST][:, -1] == EOS).all()
    assert (log_probs(model, prompts, completions)[~World.is_token(completions)] == 0).all()


def test_the_source_of_lengths_gives_shaping_that_is_the_length():
    (record,) = LengthSource().fetch([[2, 3, 4]], [[5, 6, 1]])
    assert Shaping().of(record, kept=3, end=3) == 3


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=30), st.integers(0, 5))
def test_partners_are_a_permutation_of_pairs_with_equal_lengths_and_none_is_its_own(lengths, seed):
    partner = partners(lengths, seed)
    assert sorted(partner) == sorted(partner.values())
    assert all(own != other and lengths[own] == lengths[other] for own, other in partner.items())
    assert set(partner) == {i for i, both in enumerate(lengths) if lengths.count(both) > 1}


def test_an_interval_is_that_of_worlds_and_seeds_drawn_again():
    random = np.random.default_rng(0)
    differences = {(world, seed): 1 + random.normal() for world in range(40) for seed in range(2)}
    mean, low, high = interval(differences)
    of_worlds = np.reshape(list(differences.values()), (40, 2)).mean(1)
    assert mean == pytest.approx(of_worlds.mean())
    # Seeds drawn within worlds add to the spread of the worlds' means.
    assert 1 < (high - low) / (2 * 1.96 * of_worlds.std() / 40**0.5) < 1.5
    assert interval(dict.fromkeys(differences, 0.5)) == (0.5, 0.5, 0.5)


def test_differences_are_paired():
    numbers = {("DPO", 0): 1.0, ("DPO", 1): 5.0, ("token", 0): 2.0, ("token", 1): 6.0, ("token, shuffled", 0): 2.5}
    results = [
        {"arm": arm, "world": world, "seed": 0, "reward": reward, "kl": 0.0, "length": 8.0}
        for (arm, world), reward in numbers.items()
    ]
    line = table(results).splitlines()[-1]
    assert line == "| token | 4.00 | 0.00 | 8.00 | +1.00 [+1.00, +1.00] | 2.50 | −0.50 [−0.50, −0.50] |"


def test_the_page_shows_the_table_of_the_results():
    results = [json.loads(line) for line in (ROOT / "studies/known_reward/results.jsonl").read_text().splitlines()]
    assert table(results) in (ROOT / "docs/study.md").read_text()


@pytest.mark.parametrize("arm", ["token k=1", "token k=3"])
def test_the_results_bear_out_what_the_page_says_of_the_token_objective(arm):
    results = [json.loads(line) for line in (ROOT / "studies/known_reward/results.jsonl").read_text().splitlines()]
    rewards = {(line["arm"], line["world"], line["seed"]): line["reward"] for line in results}
    units = {(line["world"], line["seed"]) for line in results}
    assert len({world for world, _ in units}) == 5 and len(units) == 10
    for other in ("DPO", f"{arm}, shuffled"):
        ahead = {unit: rewards[arm, *unit] - rewards[other, *unit] for unit in units}
        assert min(ahead.values()) > 0, (other, ahead)
        _, low, _ = interval(ahead)
        assert low > 0


@pytest.mark.timeout(900)
def test_a_small_study_goes_on_where_it_was_stopped_and_gives_the_same(tmp_path):
    def run() -> tuple[str, list[dict]]:
        command = [sys.executable, "-m", "studies.known_reward", "--quick", "--output", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout, [json.loads(line) for line in file.read_text().splitlines()]

    file = tmp_path / "quick" / "results.jsonl"
    printed, whole = run()
    arms = {line["arm"] for line in whole}
    assert {"T1", "DPO", "length", "tvkd", "token k=3", "soft-label", "tvkd, shuffled", "token k=3, shuffled"} <= arms
    assert printed.endswith(table(whole) + "\n")
    by_arm = {line["arm"]: line["reward"] for line in whole}
    assert by_arm["token k=3"] != by_arm["token k=3, shuffled"] and by_arm["tvkd"] != by_arm["DPO"]

    # As a kill in the middle of a line leaves it.
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-2]) + lines[-2][:40])
    again_printed, again = run()
    assert [line | {"seconds": 0} for line in again] == [line | {"seconds": 0} for line in whole]
    assert "models and values made" in printed and "models and values made" not in again_printed
