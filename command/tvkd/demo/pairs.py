"""The demo's preference pairs, made from WordNet by `scripts/wordnet_pairs.py`; its licence lies beside the data."""

import json
from importlib import resources
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    prompt: str
    chosen: str
    rejected: str
    kind: str  # "gloss": rejected is another word's; "swap": two words of the gloss are swapped
    split: str  # "train" or "heldout"


def pairs_file() -> Path:
    """The shipped JSONL file, plain-text columns of TRL's preference format."""
    return Path(str(resources.files("tvkd.demo") / "pairs.jsonl"))


def demo_pairs() -> list[Pair]:
    with pairs_file().open(encoding="utf-8") as file:
        return [Pair(**json.loads(line)) for line in file]
