"""Outcomes of a student: one number for each held-out pair, and one for each completion that it writes itself."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from trl.data_utils import maybe_extract_prompt

from tvkd.evaluation.log_probs import log_probs
from tvkd.evaluation.sampling import sample
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_client.source import StoreSource
from tvkd_shared import shaping
from tvkd_shared.ending import Ending
from tvkd_shared.errors import InvalidRequest, NotCached
from tvkd_shared.value import Float64

Reward = Callable[..., Sequence[float]]

OF_PAIRS = ("reward_accuracy", "reward_margin", "dpo_loss", "cross_entropy")
OF_SAMPLES = ("kl", "length", "ended")
LOWER_IS_BETTER = frozenset({"dpo_loss", "cross_entropy", "kl"})


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What students are measured on: pairs, some of their prompts, and how completions of these are drawn.

    Two students are compared on the same pairs, and with the same seed on the same prompts.

    beta            β of the implicit reward r = β·(log π_θ − log π_ref)
    samples         how many different prompts a completion is drawn for; 0 draws none
    max_new_tokens  where a completion without EOS is cut
    reward          a reward of a completion, as TRL's reward functions are; None where there is none
    stored          a store with the reference's log-probs of the pairs, which saves its pass over them, or None
    """

    rows: Dataset
    tokenizer: Any
    beta: float
    samples: int
    max_new_tokens: int
    seed: int
    reward: Reward | None = None
    stored: StoreSource | None = None


@dataclass(slots=True)
class Outcome:
    """`items` has float64 [N pairs] or [N samples] by name:

    reward_accuracy  1 where r(chosen) > r(rejected), else 0
    reward_margin    r(chosen) − r(rejected), in nats
    dpo_loss         −log σ of that margin; log 2 = 0.693 for the reference itself
    cross_entropy    of the chosen completion under the student, in nats a token
    kl               log π_θ − log π_ref of the student's own completion; its mean is KL(π_θ ‖ π_ref) in nats a
                     completion, up to `max_new_tokens`
    length           tokens of the student's own completion, with its EOS
    ended            1 where that completion ended with EOS before the limit, else 0
    reward           the given reward of it

    `texts` are the samples. `benchmarks` are means of other programs, by name.
    """

    items: dict[str, Float64]
    texts: list[dict[str, Any]]
    benchmarks: dict[str, float] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        return {name: float(numbers.mean()) for name, numbers in self.items.items()} | self.benchmarks


def measure(student: Any, reference: Any, held_out: HeldOut) -> Outcome:
    """A student beside its reference. Raises InvalidRequest for a reward that does not answer for each completion."""
    tokens = tokenize_preferences(held_out.rows, held_out.tokenizer, "held out")
    items = _of_pairs(student, reference, tokens, held_out)
    if not held_out.samples:
        return Outcome(items, [])
    prompts, ids = _prompts(held_out, tokens)
    eos = Ending(held_out.tokenizer, student.generation_config.eos_token_id).eos
    if not eos:
        raise InvalidRequest("neither tokenizer nor model names an end-of-sequence token, so no sample would end")
    drawn = sample(student, ids, sorted(eos), max_new_tokens=held_out.max_new_tokens, seed=held_out.seed)
    items["kl"] = log_probs(student, ids, drawn) - log_probs(reference, ids, drawn)
    items["length"] = np.array([len(completion) for completion in drawn], np.float64)
    items["ended"] = np.array([completion[-1] in eos for completion in drawn], np.float64)
    texts = held_out.tokenizer.batch_decode(drawn, skip_special_tokens=True)
    if held_out.reward is not None:
        items["reward"] = rewards_of(held_out.reward, prompts, texts)
    numbers = [{name: float(items[name][row]) for name in ("kl", "reward") if name in items} for row in range(len(ids))]
    samples = [
        {"prompt": prompt, "completion": text, **of_row}
        for prompt, text, of_row in zip(prompts, texts, numbers, strict=True)
    ]
    return Outcome(items, samples)


def _of_pairs(student: Any, reference: Any, tokens: Dataset, held_out: HeldOut) -> dict[str, Float64]:
    prompts = tokens["prompt_ids"][:]
    sides = [tokens[side][:] for side in ("chosen_ids", "rejected_ids")]
    of_student = [log_probs(student, prompts, side) for side in sides]
    of_reference = [_of_reference(reference, held_out.stored, prompts, side) for side in sides]
    margins = held_out.beta * ((of_student[0] - of_reference[0]) - (of_student[1] - of_reference[1]))
    return {
        "reward_accuracy": (margins > 0).astype(np.float64),
        "reward_margin": margins,
        "dpo_loss": np.logaddexp(0.0, -margins),
        "cross_entropy": -of_student[0] / np.array([len(completion) for completion in sides[0]]),
    }


def _of_reference(model: Any, stored: StoreSource | None, prompts: list[list[int]], side: list[list[int]]) -> Float64:
    """log π_ref of each completion: from the store where it has all of them, or else by the model itself."""
    if stored is not None:
        with suppress(NotCached):
            return np.array([shaping.log_probs(record, record.length).sum() for record in stored.fetch(prompts, side)])
    return log_probs(model, prompts, side)


def _prompts(held_out: HeldOut, tokens: Dataset) -> tuple[list[Any], list[list[int]]]:
    """The first different prompts, as text or messages, and as tokens."""
    rows = held_out.rows.map(maybe_extract_prompt)["prompt"][:]
    different: dict[tuple[int, ...], Any] = {}
    for prompt, ids in zip(rows, tokens["prompt_ids"][:], strict=True):
        different.setdefault(tuple(ids), prompt)
    chosen = list(different.items())[: held_out.samples]
    return [prompt for _, prompt in chosen], [list(ids) for ids, _ in chosen]


def rewards_of(reward: Reward, prompts: Sequence[Any], texts: Sequence[str]) -> Float64:
    """A reward function's numbers, called as TRL calls its own: `reward(prompts=…, completions=…)`.

    A prompt of messages has completions of messages. Raises InvalidRequest unless there is a finite number for each.
    """
    completions = [
        [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    numbers = np.asarray(reward(prompts=list(prompts), completions=completions), np.float64)
    if numbers.shape != (len(texts),) or not np.isfinite(numbers).all():
        raise InvalidRequest(
            f"the reward answered {numbers.size} numbers for {len(texts)} completions, "
            f"{int(np.isfinite(numbers).sum())} of them finite; it must answer one finite number for each"
        )
    return numbers


def summary_of(outcome: Outcome) -> Mapping[str, Any]:
    """What is written of an outcome as JSON: means, standard errors over items, and the numbers themselves."""
    errors = {
        name: float(numbers.std(ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else None
        for name, numbers in outcome.items.items()
    }
    return {
        "means": outcome.means(),
        "standard_errors": errors,
        "items": {name: numbers.tolist() for name, numbers in outcome.items.items()},
    }
