"""A small store of known values, and the pairs that they belong to."""

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from known_records import scored

from tvkd_shared.key import completion_keys
from tvkd_shared.store import open_store
from tvkd_shared.wire import TeacherInfo

TEACHER = TeacherInfo(
    id="0" * 32, name="tiny", dtype="float32", vocab_size=128, longest_sequence=256, engine="none",
    engine_version="0", temperatures=(0.25, 4.0),
)  # fmt: skip


@dataclass
class SmallStore:
    path: Path
    dataset: Path
    tokenizer: Path


@pytest.fixture(scope="session")
def small_store(tiny_teacher, tmp_path_factory) -> SmallStore:
    """One pair: "w8 w9" is chosen with V = 1, 3, 2, 2.5; "w10" is rejected with V = 1, 0.5, 0. Both end with <eos>."""
    folder = tmp_path_factory.mktemp("show")
    pair = {"prompt": "<user> w20 w21 <assistant> ", "chosen": "w8 w9 ", "rejected": "w10 "}
    (folder / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    chosen_key, rejected_key = completion_keys(TEACHER.id, [4, 20, 21, 5], [[8, 9, 2], [10, 2]])
    with closing(open_store(folder / "store")) as store:
        store.add_teacher(TEACHER)
        store.put(TEACHER.id, [(chosen_key, scored([1.0, 3.0, 2.0, 2.5])), (rejected_key, scored([1.0, 0.5, 0.0]))])
    return SmallStore(folder / "store", folder / "pairs.jsonl", tiny_teacher)
