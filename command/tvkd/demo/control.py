"""The pairs of the demo's runs: who trains, who is held out, and whose shaping each pair of the control takes."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from tvkd_shared.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows of the data set are used for what, and the permutation of the control.

    train    rows of the train split; the student is fine-tuned on their chosen completions
    used     those of them that the three runs train on
    unseen   held-out rows
    partner  index in `train` → index in `train` of the pair whose shaping the control takes
    """

    train: list[int]
    used: list[int]
    unseen: list[int]
    partner: dict[int, int]


def choose(tokens: Dataset, most: int, seed: int) -> Split:
    """At most `most` pairs to train on, each with a partner, and the held-out ones.

    `tokens` has columns split, prompt_ids, chosen_ids and rejected_ids. Raises InvalidRequest when either is empty.
    """
    train = [row for row, split in enumerate(tokens["split"]) if split == "train"]
    unseen = [row for row, split in enumerate(tokens["split"]) if split == "heldout"]
    lengths = [
        (len(chosen), len(rejected))
        for chosen, rejected in zip(tokens["chosen_ids"], tokens["rejected_ids"], strict=True)
    ]
    partner = partners([lengths[row] for row in train], seed)
    if not partner or not unseen:
        raise InvalidRequest(
            f"of {len(tokens)} pairs {len(partner)} can be trained on and {len(unseen)} are held out; take more"
        )
    return Split(train, [train[index] for index in sorted(partner)][:most], unseen, partner)


def partners(lengths: Sequence[tuple[int, int]], seed: int) -> dict[int, int]:
    """For each pair another pair whose completions have the same two lengths: a permutation with no fixed point.

    The lengths must agree because a record has its completion's length. A pair without a partner is omitted.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, both in enumerate(lengths):
        alike[both].append(index)
    chance = random.Random(seed)  # noqa: S311 - a permutation, not a secret
    partner: dict[int, int] = {}
    for group in alike.values():
        if len(group) > 1:
            chance.shuffle(group)
            partner.update(zip(group, group[1:] + group[:1], strict=True))
    return partner
