"""Make the demo's preference pairs from WordNet: `wordnet_pairs.py FOLDER --output pairs.jsonl`.

FOLDER holds WordNet's `index.noun`, `data.noun`, `index.verb` and `data.verb` (Debian's `wordnet-base` has them in
/usr/share/wordnet). A pair asks for the definition of a word in its most frequent sense:

    prompt    the question in the teacher's own chat markup, without a system message, which keeps it short
    chosen    WordNet's gloss
    rejected  kind "gloss": the gloss of another word of the same lexicographer file, at most one word longer or shorter
              kind "swap":  the same gloss with two neighbouring words swapped
    split     "heldout" where the prompt's digest is divisible by 5, else "train"

No gloss is used twice, so nothing held out is seen in training. Order and choices come from digests of the words, not
from a random generator, so that every Python makes the same file. Trainers append the end-of-sequence token.
"""

import argparse
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Lexicographer files whose words are harmless in a shipped example: animals, artifacts, cognition, food, objects,
# phenomena, plants, processes, quantities, relations, shapes, substances, times; verbs of change, cognition, contact,
# creation, motion, perception.
FILES = {
    "noun": {"05", "06", "09", "13", "17", "19", "20", "22", "23", "24", "25", "27", "28"},
    "verb": {"30", "31", "35", "36", "38", "39"},
}
SHORTEST, LONGEST = 3, 9  # words in a gloss: a CPU has to read them all

_WORD = re.compile(r"[a-z]{3,}")
_GLOSS = re.compile(r"[a-z][a-z ,'-]*[a-z]")
_HARSH = re.compile(r"kill|weapon|\bguns?\b|military|bomb|slave|sex")


class Sense(NamedTuple):
    kind: str  # "noun" or "verb"
    file: str  # two digits, the lexicographer file
    word: str
    gloss: str


def senses(folder: Path) -> Iterator[Sense]:
    """The most frequent sense of each single word that occurs in WordNet's tagged texts, with a short plain gloss."""
    for kind, files in FILES.items():
        first = {}
        for line in _lines(folder / f"index.{kind}"):
            # lemma pos synset_cnt p_cnt [pointer symbols] sense_cnt tagsense_cnt synset_offset …, see wndb(5WN)
            fields = line.split()
            lemma, synsets = fields[0], int(fields[2])
            tagged, offset = int(fields[-synsets - 1]), fields[-synsets]
            if tagged and _WORD.fullmatch(lemma):
                first[offset, lemma] = True
        for line in _lines(folder / f"data.{kind}"):
            # synset_offset lex_filenum ss_type w_cnt word lex_id … | gloss; "example"; "example"
            synset, _, explanation = line.partition("|")
            fields = synset.split()
            gloss = explanation.split('; "')[0].strip().rstrip(";")
            offset, file, word = fields[0], fields[1], fields[4]
            short = SHORTEST <= len(gloss.split()) <= LONGEST
            plain = _GLOSS.fullmatch(gloss) and word not in gloss and not _HARSH.search(gloss)
            if file in files and (offset, word) in first and short and plain:
                yield Sense(kind, file, word, gloss)


def pairs(folder: Path, count: int) -> list[dict[str, str]]:
    """At most `count` pairs, half of each kind as far as the glosses last, in an order that does not depend on them."""
    pools: dict[str, list[Sense]] = defaultdict(list)
    seen: set[str] = set()
    for sense in sorted(senses(folder), key=lambda sense: _digest(sense.kind, sense.word)):
        if sense.gloss not in seen:
            seen.add(sense.gloss)
            pools[sense.file].append(sense)

    made = []
    for pool in pools.values():
        while pool:
            sense = pool.pop(0)
            other = next((o for o in pool if abs(_words(o) - _words(sense)) <= 1), None)
            if len(made) % 2 and other is not None:
                pool.remove(other)
                made.append(_pair(sense, other.gloss, "gloss"))
            elif (swapped := _swap(sense)) is not None:
                made.append(_pair(sense, swapped, "swap"))
    return sorted(made, key=lambda pair: _digest("order", pair["prompt"]))[:count]


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith("  "))  # the licence comes first


def _digest(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


def _words(sense: Sense) -> int:
    return len(sense.gloss.split())


def _swap(sense: Sense) -> str | None:
    """The gloss with two different neighbouring words swapped, None where commas make the swap unclear."""
    words = sense.gloss.split()
    places = [i for i in range(len(words) - 1) if words[i] != words[i + 1] and "," not in words[i] + words[i + 1]]
    if not places:
        return None
    at = places[_digest("swap", sense.word) % len(places)]
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def _pair(sense: Sense, rejected: str, kind: str) -> dict[str, str]:
    question = f'Define the {sense.kind} "{sense.word}".'
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    split = "train" if _digest("split", prompt) % 5 else "heldout"
    return {"prompt": prompt, "chosen": sense.gloss, "rejected": rejected, "kind": kind, "split": split}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="WordNet's data folder")
    parser.add_argument("--output", type=Path, required=True, help="the JSONL file to write")
    parser.add_argument("--pairs", type=int, default=1000, help="how many pairs at most")
    arguments = parser.parse_args()
    rows = pairs(arguments.folder, arguments.pairs)
    with arguments.output.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
