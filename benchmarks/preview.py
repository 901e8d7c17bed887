"""`tvkd preview` of many synthetic pairs, from a local store: its seconds, start and tokenising included.

    python benchmarks/preview.py [--pairs 100000] [--tokens 60]

A completion has `--tokens` tokens on average. Two models are in two stores, teacher and what its DPO started from, so
that all readings are computed. Making the pairs and the stores is not counted. TRL tokenises one row after another, a
process for each core, and datasets caches what it made, so the command is timed twice. On a machine that is not idle,
compare the seconds of processor with those of the clock.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tvkd_shared.key import completion_keys
from tvkd_shared.record import Record
from tvkd_shared.store import open_store

WORDS, EOS, PUT = 1000, 0, 2000


def tokenizer(folder: Path) -> None:
    vocabulary = {"<eos>": EOS} | {f"w{number}": number for number in range(1, WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)


def fill(folder: Path, model: str, pairs: list[list[list[int]]], seed: int) -> None:
    random = np.random.default_rng(seed)

    def record(T: int) -> Record:
        V = (20 + np.cumsum(random.normal(0, 0.5, T + 1))).astype(np.float32)
        q = (V[:-1] - random.exponential(0.7, T)).astype(np.float32)
        return Record.of({1.0: V}, q, random.exponential(1.0, T + 1).astype(np.float32))

    with closing(open_store(folder)) as store:
        for start in range(0, len(pairs), PUT):
            keys = [
                key for prompt, *sides in pairs[start : start + PUT] for key in completion_keys(model, prompt, sides)
            ]
            lengths = [len(side) for _, *sides in pairs[start : start + PUT] for side in sides]
            store.put(model, list(zip(keys, map(record, lengths), strict=True)))


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--pairs", type=int, default=100_000)
    flags.add_argument("--tokens", type=int, default=60)
    args = flags.parse_args()
    random = np.random.default_rng(0)

    def words() -> list[int]:
        return random.integers(1, WORDS, random.integers(args.tokens // 2, args.tokens * 3 // 2)).tolist()

    texts = [[words()[:20], words(), words()] for _ in range(args.pairs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer(folder / "tokenizer")
        with (folder / "pairs.jsonl").open("w") as file:
            for pair in texts:
                row = zip(
                    ("prompt", "chosen", "rejected"), (" ".join(f"w{n}" for n in ids) for ids in pair), strict=True
                )
                file.write(json.dumps({key: text + " " for key, text in row}) + "\n")
        ids = [[prompt, [*chosen, EOS], [*rejected, EOS]] for prompt, chosen, rejected in texts]
        for seed, store in enumerate(("teacher", "before")):
            fill(folder / store, str(seed) * 32, ids, seed)
        command = [sys.executable, "-m", "tvkd.cli", "preview", "--dataset", "pairs.jsonl", "--tokenizer", "tokenizer"]
        command += ["--store", "teacher", "--teacher-reference", "before", "--json"]
        environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
        print(f"{args.pairs:,} pairs, about {2 * args.pairs * args.tokens:,} tokens, two models")
        for turn in ("first time", "again, with the tokens in the cache of datasets"):
            start, used = time.perf_counter(), os.times().children_user
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            print(f"{turn}: {time.perf_counter() - start:.1f} s, {os.times().children_user - used:.1f} s of processor")


if __name__ == "__main__":
    main()
