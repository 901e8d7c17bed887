"""Preference data of the tiny teacher's own words, in the shapes that people have."""

import random


def words(seed: int, count: int) -> str:
    generator = random.Random(seed)
    return " ".join(f"w{generator.randrange(8, 128)}" for _ in range(count))


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def plain(pairs: int, seed: int = 0) -> list[dict]:
    """Prompts with a trailing space, so that no token spans the border."""
    return [
        {
            "prompt": words(seed + 3 * i, 5) + " ",
            "chosen": words(seed + 3 * i + 1, 2 + i % 5),
            "rejected": words(seed + 3 * i + 2, 1 + i % 7),
        }
        for i in range(seed, seed + pairs)
    ]


def conversational(pairs: int, seed: int = 0) -> list[dict]:
    return [
        {
            "prompt": [message("user", row["prompt"].strip())],
            "chosen": [message("assistant", row["chosen"])],
            "rejected": [message("assistant", row["rejected"])],
        }
        for row in plain(pairs, seed)
    ]


def implicit(rows: list[dict]) -> list[dict]:
    """Both completions begin with the prompt, and there is no prompt column."""
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


SHAPES = {
    "plain": plain,
    "conversational": conversational,
    "implicit plain": lambda pairs: implicit(plain(pairs)),
    "implicit conversational": lambda pairs: implicit(conversational(pairs)),
}
