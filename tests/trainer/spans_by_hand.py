"""Objectives with two tokenizers, from raw logits in float64: no store, no offsets, one sequence at a time.

Spans are found from the bytes that tokens stand for.
"""

from itertools import accumulate

import torch
from datasets import Dataset
from objectives_by_hand import SIDES, log_probs, logits_of, models_of, potential, shaping_of

from text_tokenizers import EOS, byte_level, merged, token_bytes
from tvkd_client.preference_tokens import tokenize_preferences

ANSWERS = [
    ("ﬁne ", "the student reads it. 🇫🇷 🇯🇵 there"),
    ("the teacher reads 😀 the text", " naïve  student"),
    ("日本語 and\n\nnew lines é e\u0301 the", "x"),
    ("👩‍👩‍👧 the 👍🏽 teacher scores the student, and there are spaces", "the the the"),
]
TEXTS = [{"prompt": f"the text {row}\n", "chosen": a, "rejected": b} for row, (a, b) in enumerate(ANSWERS)]
CHATS = [
    {name: [{"role": "assistant" if name != "prompt" else "user", "content": text}] for name, text in row.items()}
    for row in TEXTS
]


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
            if base is None:
                A = self.A = sums(of_teacher, their_ends) - sums(behind, our_ends)
            else:
                A = (of_teacher - log_probs(base, their_prompt, their_ids))[: their_ends[-1]]
                self.A = sums(A, their_ends)
            logits_SV = logits_of(teacher, their_prompt, their_ids)[: their_ends[-1] + 1]
            phi = potential(settings, logits_SV, A)
        lr = (log_probs(policy, prompt, ids) - behind)[:kept]
        self.lr, self.delta = sums(lr, our_ends), lr.sum()
        of_spans = base is None and settings.get("potential") == "implicit"
        end = len(spans) if of_spans else spans[-2][1] + 1  # the first token behind the text ends the turn
        self.S = shaping_of(settings, phi, end if len(whole) == len(spans) else None)


def pairs_by_hand(rows: list[dict], policy, roles: dict, settings: dict, longest: int) -> list[list[ByHand]]:
    """Of rows of a trainer whose teacher reads `byte_level` tokens."""
    texts = [{name: row[name] for name in ("prompt", *SIDES)} for row in rows]
    teachers = tokenize_preferences(Dataset.from_list(texts), byte_level())
    models = models_of(policy, roles)
    return [
        [ByHand(row, side, theirs, **models, settings=settings, longest=longest) for side in SIDES]
        for row, theirs in zip(rows, teachers, strict=True)
    ]
