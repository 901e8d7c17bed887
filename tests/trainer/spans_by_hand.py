"""Objectives with two tokenizers, from raw logits in float64: no store, no offsets, one sequence at a time.

Spans are found from the bytes that tokens stand for.
"""

from itertools import accumulate

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from text_tokenizers import EOS, byte_level, merged, token_bytes
from tvkd_shared.shaping import shaping

BETA = 0.1


def by_bytes(row: dict, side: str, teachers: list[int]) -> list[tuple[int, int]]:
    """How many of the student's and of the teacher's tokens end with each span or before it."""
    text = row[side] if isinstance(row[side], str) else row[side][0]["content"]
    text = text.removesuffix(EOS)
    borders = []
    for tokenizer, ids in ((merged(), row[f"{side}_ids"]), (byte_level(), teachers)):
        pieces = [token_bytes(tokenizer, number) for number in ids]
        added = b"".join(pieces).index(text.encode())  # a blank that a tokenizer puts in front
        borders.append([length - added for length in accumulate(map(len, pieces))])
    of_characters = accumulate(len(character.encode()) for character in text)
    shared = sorted(set(borders[0]) & set(borders[1]) & set(of_characters))
    assert shared[-1] == len(text.encode())
    return [tuple(each.index(border) + 1 for each in borders) for border in shared] + [tuple(map(len, borders))]


def log_probs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(completion)), completion]


def values(model, prompt: list[int], completion: list[int]) -> np.ndarray:
    return model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 :].logsumexp(-1).numpy()


def sums(numbers: torch.Tensor, ends: list[int]) -> torch.Tensor:
    return torch.stack([numbers[begin:end].sum() for begin, end in zip([0, *ends], ends, strict=False)])


class ByHand:
    """The definitions, of one completion."""

    def __init__(self, row, side, teachers_row, *, policy, reference, teacher, base, settings, longest) -> None:
        prompt, ids = row["prompt_ids"], row[f"{side}_ids"]
        their_prompt, their_ids = teachers_row["prompt_ids"], teachers_row[f"{side}_ids"]
        kept = min(len(ids), longest - len(prompt))
        spans = by_bytes(row, side, their_ids)
        whole = [(ours, theirs) for ours, theirs in spans if ours <= kept]
        self.cuts_a_span = kept not in [ours for ours, _ in spans]
        our_ends, their_ends = map(list, zip(*whole, strict=True))
        with torch.no_grad():
            behind = log_probs(reference, prompt, ids)
            of_teacher = log_probs(teacher, their_prompt, their_ids)
            V = values(teacher, their_prompt, their_ids)[: their_ends[-1] + 1]
            if base is None:
                A_N = sums(of_teacher, their_ends) - sums(behind, our_ends)
                A = A_N
            else:
                A = (of_teacher - log_probs(base, their_prompt, their_ids))[: their_ends[-1]]
                A_N = sums(A, their_ends)
        lr = (log_probs(policy, prompt, ids) - behind)[:kept]
        self.lr, self.A, self.delta = sums(lr, our_ends), A_N, lr.sum()
        ended = len(whole) == len(spans)
        if settings.get("potential") == "implicit":
            phi = np.append(0.0, np.cumsum(A.numpy()))
            end = len(A_N) if base is None else spans[-2][1] + 1
        else:
            phi, end = V, spans[-2][1] + 1  # the first token behind the text ends the turn
        psi = shaping(
            phi,
            gamma=settings.get("gamma", 1.0),
            terminal=settings.get("terminal", "state"),
            end=end if ended else None,
        )
        self.S = psi.mean() if settings.get("aggregate") == "mean" else psi.sum()


def loss_by_hand(settings: dict, pairs: list[list[ByHand]], data: list[list[ByHand]]) -> torch.Tensor:
    every = [one for pair in data for one in pair]
    c = torch.cat([one.A for one in every]).mean() if settings.get("center") else 0.0
    k = settings.get("strength", 1.0)
    delta = torch.stack([chosen.delta - rejected.delta for chosen, rejected in pairs])
    if settings["objective"] == "tvkd":
        S = torch.tensor([chosen.S - rejected.S for chosen, rejected in pairs])
        return -logsigmoid(BETA * delta + settings["alpha"] * S).mean()
    if settings["objective"] == "soft-label":
        p = torch.sigmoid(k * torch.stack([chosen.A.sum() - rejected.A.sum() for chosen, rejected in pairs]))
        return (-p * logsigmoid(BETA * delta) - (1 - p) * logsigmoid(-BETA * delta)).mean()
    errors = [(one.lr - k * (one.A - c)) ** 2 for pair in pairs for one in pair]
    return torch.cat(errors).mean() - settings.get("dpo_weight", 0.0) * logsigmoid(BETA * delta).mean()
