import json

import pytest
from datasets import Dataset, DatasetDict
from preference_rows import SHAPES, conversational, plain
from trl.data_utils import maybe_extract_prompt

from tvkd_client.dataset import Columns, load_preferences
from tvkd_shared.errors import InvalidRequest

ROWS = plain(4)


def write_jsonl(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path, rows=ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(path)
    return str(path)


def jsonl(folder):
    return write_jsonl(folder / "pairs.jsonl")


def json_array(folder):
    (folder / "pairs.json").write_text(json.dumps(ROWS))
    return str(folder / "pairs.json")


def csv(folder):
    Dataset.from_list(ROWS).to_csv(folder / "pairs.csv")
    return str(folder / "pairs.csv")


def tsv(folder):
    Dataset.from_list(ROWS).to_csv(folder / "pairs.tsv", sep="\t")
    return str(folder / "pairs.tsv")


def parquet(folder):
    return write_parquet(folder / "pairs.parquet")


def parquet_glob(folder):
    write_parquet(folder / "data" / "part-0.parquet", ROWS[:1])
    write_parquet(folder / "data" / "part-1.parquet", ROWS[1:])
    return str(folder / "data" / "*.parquet")


def parquet_folder(folder):
    parquet_glob(folder)
    return str(folder / "data")


def saved(folder):
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return str(folder / "saved")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("make", [jsonl, json_array, csv, tsv, parquet, parquet_glob, parquet_folder, saved])
def test_the_same_pairs_come_from_every_kind_of_source(make, tmp_path):
    assert load_preferences(make(tmp_path)).to_list() == ROWS


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_that_trl_takes_is_taken(shape, tmp_path):
    rows = SHAPES[shape](3)
    # These words all begin with w, so what two texts share ends inside one.
    loaded = load_preferences(
        write_jsonl(tmp_path / "x.jsonl", rows), columns=Columns("none" if "im" in shape else None)
    )
    assert loaded.to_list() == [maybe_extract_prompt(row) for row in rows]


def test_several_splits_want_a_name_and_one_does_not(tmp_path):
    two = DatasetDict(train=Dataset.from_list(ROWS[:3]), test=Dataset.from_list(ROWS[3:]))
    two.save_to_disk(tmp_path / "two")
    assert len(load_preferences(str(tmp_path / "two"), "test")) == 1
    for split in (None, "validation"):
        with pytest.raises(InvalidRequest, match=r"split.*name one of train, test"):
            load_preferences(str(tmp_path / "two"), split)
    assert len(load_preferences(jsonl(tmp_path), "train[:2]")) == 2
    with pytest.raises(InvalidRequest, match="leave out 'test'"):
        load_preferences(saved(tmp_path), "test")


def broken(**change) -> list[dict]:
    return [*ROWS[:2], ROWS[2] | change]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([{"prompt": "a", "response": "b"}], "has columns prompt, response; needed are chosen, rejected"),
        (broken(chosen=""), "row 2: chosen is empty"),
        (broken(prompt=""), "row 2: prompt is empty"),
        (broken(rejected=None), "row 2: rejected is None, not text"),
        ([*conversational(1), conversational(1)[0] | {"chosen": []}], "row 1: chosen is empty"),
        ([{"chosen": [1, 2], "rejected": [3]}], r"row 0: chosen is \[1, 2\], not text, or a list of messages"),
        ([ROWS[0] | {"image": "x.png"}], "leave images out"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(rows, line, tmp_path):
    with pytest.raises(InvalidRequest, match=line) as caught:
        load_preferences(write_jsonl(tmp_path / "x.jsonl", rows))
    assert "\n" not in str(caught.value)


def test_an_empty_file_a_broken_one_and_none_are_said_in_one_line(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"chosen": "a", \n')
    (tmp_path / "notes.txt").write_text("a")
    for name in ("empty.jsonl", "broken.jsonl", "missing.jsonl", "no/such/folder", "notes.txt", "*.parquet"):
        with pytest.raises(InvalidRequest, match=name.replace("*", r"\*")) as caught:
            load_preferences(str(tmp_path / name))
        assert "\n" not in str(caught.value)
