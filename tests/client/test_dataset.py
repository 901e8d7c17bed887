import json

import pytest
from datasets import Dataset, DatasetDict
from preference_rows import SHAPES, conversational, plain
from trl.data_utils import maybe_extract_prompt
from trl.scripts.utils import DatasetMixtureConfig

from tvkd.cli import main as tvkd
from tvkd_client.dataset import Columns, DataArguments, load_preferences, training_data
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


@pytest.fixture
def configured(tmp_path):
    """A folder of two configurations, of three pairs and of one."""
    folder = tmp_path / "configured"
    write_jsonl(folder / "easy.jsonl", ROWS[:3])
    write_jsonl(folder / "hard.jsonl", ROWS[3:])
    entries = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("easy", "hard"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    return str(folder)


def mixed(*entries: dict) -> Dataset:
    return training_data(DataArguments(), DatasetMixtureConfig([*entries]), evaluation=False)["train"]


def test_a_configuration_is_read_when_it_is_named(configured):
    assert load_preferences(configured, config="hard").to_list() == ROWS[3:]
    assert mixed({"path": configured, "name": "hard"}).to_list() == ROWS[3:]
    wanted = "has to be one of its configurations, easy, hard$"
    for config in (None, "other"):
        with pytest.raises(InvalidRequest, match=rf"dataset_config \(--dataset-config\) {wanted}"):
            load_preferences(configured, config=config)
        with pytest.raises(InvalidRequest, match=rf"name in its entry {wanted}"):
            mixed({"path": configured, "name": config})


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("torn.jsonl", '{"prompt": "w8", "cho', "datasets: .*torn.jsonl cannot be read: JSON parse error"),
        (
            "shifted.csv",
            "prompt,chosen,rejected\nw8,w9,w10,w11\n",
            "data set .*shifted.csv: its lines have more fields",
        ),
        ("pairs.tsv", "prompt\tchosen\trejected\nw8\tw9\tw10\n", "datasets: .*pairs.tsv has tabs between fields"),
        ("pairs.txt", "w8", "pairs.txt is not JSON, JSON lines, CSV or Parquet"),
    ],
)
def test_a_fault_in_a_mixture_names_its_entry(name, content, line, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidRequest, match=line):
        mixed({"path": jsonl(tmp_path), "fraction": 0.5}, {"path": str(tmp_path / name), "fraction": 0.5})


@pytest.mark.parametrize("command", ["prefetch", "show", "train"])
def test_every_command_takes_a_configuration_and_says_which_there_are(
    command, configured, server, student, tmp_path, capsys
):
    flags = ["--server", server.url, "--dataset", configured, "--tokenizer", str(student)]
    if command == "train":
        flags = [
            "--teacher", server.url, "--dataset_name", configured, "--model_name_or_path", str(student), "--output_dir",
            str(tmp_path / "out"), "--use_cpu", "--max_steps", "1", "--report_to", "none", "--save_strategy", "no",
        ]  # fmt: skip
    assert tvkd([command, *flags]) == 2
    assert "(--dataset-config) has to be one of its configurations, easy, hard" in capsys.readouterr().err
    assert tvkd([command, *flags, "--dataset-config", "hard"]) == 0
    told = capsys.readouterr()
    assert ("margin" in told.out) if command == "show" else ("the first of 1 pairs" in told.err)


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
