"""Students of one world and seed: where each arm's values come from, its training, and what its samples earn."""

import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel

from studies.known_reward.models import SETTINGS, load, log_probs, run, sample, tokenizer
from studies.known_reward.world import World
from tvkd.study.controls import LengthSource, ShuffledSource, TrainingPairs
from tvkd_client import StoreSource, TVKDConfig, TVKDTrainer
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_client.source import ValueSource
from tvkd_shared.shaping import Shaping

LENGTH, SHUFFLED = "length", "shuffled"
"""What an arm's `values` may be in place of the teacher's: the completion's length, or another pair's values."""

BATCH, EVALUATED_PROMPTS = 16, 1000


@dataclass(frozen=True)
class Outcome:
    """Means over samples on fresh prompts: true reward, KL(student ‖ S0) in nats a completion, tokens with EOS."""

    reward: float
    kl: float
    length: float


class Students:
    """All students of a world's folder and a seed. They see the same pairs in the same order.

    Only pairs with a partner are taken: another pair whose two completions have the same two lengths. A control trains
    each pair with its partner's values, so that nothing is left of them but their spread and what length tells.
    """

    def __init__(self, world: World, folder: Path, seed: int, pairs: int) -> None:
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        data = Dataset.from_list([row for row in rows if row["seed"] == seed]).remove_columns("seed")
        self._tokens = tokenize_preferences(data, tokenizer())
        sides = (map(len, self._tokens[side]) for side in ("chosen_ids", "rejected_ids"))
        self._partner = partners(list(zip(*sides, strict=True)), seed)
        if len(self._partner) < pairs:
            raise ValueError(f"{len(self._partner)} pairs of {len(data)} have a partner, and {pairs} are wanted")
        self._used = sorted(self._partner)[:pairs]
        self._data = data.select(self._used)
        self._world, self._folder, self._seed = world, folder, seed

    def train(self, given: Mapping[str, Any]) -> tuple[GPT2LMHeadModel, float]:
        """A student trained with an arm's settings, and the seconds that it took.

        The settings are those of TVKDConfig, and two of the study's: `spread` stands for alpha, the standard deviation
        of α times the margin; `values` is LENGTH or SHUFFLED where they are not the teacher's.
        """
        settings = dict(given)
        spread, sources = settings.pop("spread", None), self._sources(settings.pop("values", None))
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as output:
            args = TVKDConfig(
                output, **SETTINGS, **settings, per_device_train_batch_size=BATCH, seed=self._seed, max_length=None,
                lr_scheduler_type="constant_with_warmup", warmup_steps=10, quiet=True,
            )  # fmt: skip
            if spread is not None:
                args.alpha = spread / np.std(self._margins(sources["teacher"], args.shaping)).item()
            student = load(self._folder / "S0")
            run(
                TVKDTrainer(student, args=args, train_dataset=self._data, sources=sources, processing_class=tokenizer())
            )
        return student, time.monotonic() - began

    def _sources(self, values: str | None) -> dict[str, ValueSource]:
        sources: dict[str, ValueSource] = {
            role: StoreSource(self._folder / "values", teacher_id=model)
            for role, model in (("teacher", "T1"), ("teacher_reference", "T0"), ("reference", "S0"))
        }
        if values == LENGTH:
            sources["teacher"] = LengthSource()
        if values == SHUFFLED:
            for role in ("teacher", "teacher_reference"):
                sources[role] = ShuffledSource(sources[role], TrainingPairs.of(self._tokens), self._partner)
        return sources

    def _margins(self, source: ValueSource, shaping: Shaping) -> list[float]:
        rows = self._tokens.select(self._used)
        sides = (source.fetch(rows["prompt_ids"][:], rows[side][:]) for side in ("chosen_ids", "rejected_ids"))
        chosen, rejected = ([shaping.of(one, kept=one.length, end=one.length) for one in side] for side in sides)
        return list(np.subtract(chosen, rejected))


def partners(lengths: Sequence[tuple[int, int]], seed: int) -> dict[int, int]:
    """For each pair another pair whose completions have the same two lengths: a permutation with no fixed point.

    A pair without a partner is omitted. `tvkd study` keeps such pairs, and stretches the values of like lengths.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, both in enumerate(lengths):
        alike[both].append(index)
    chance = random.Random(seed)
    partner: dict[int, int] = {}
    for group in alike.values():
        if len(group) > 1:
            chance.shuffle(group)
            partner.update(zip(group, group[1:] + group[:1], strict=True))
    return partner


def evaluate(world: World, model: GPT2LMHeadModel, reference: GPT2LMHeadModel, seed: int) -> Outcome:
    """What a model's samples on fresh prompts earn. The seed draws the prompts and the samples."""
    prompts = world.prompts(EVALUATED_PROMPTS, torch.Generator().manual_seed(seed))
    completions = sample(model, prompts, seed)
    # The last place is always EOS, which is not the model's choice.
    ratio = (log_probs(model, prompts, completions) - log_probs(reference, prompts, completions))[:, :-1]
    return Outcome(
        world.reward(prompts, completions).mean().item(),
        ratio.sum(1).mean().item(),
        World.is_token(completions).sum(1).float().mean().item(),
    )
