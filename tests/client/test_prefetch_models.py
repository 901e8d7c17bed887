"""`tvkd prefetch` without a server started by hand: with a model's folder, and with a training's file."""

import json
import re

import pytest
import torch
import yaml
from preference_rows import conversational, plain
from transformers import AutoModelForCausalLM, AutoTokenizer

from running_server import start_server
from tvkd.cli import main as tvkd
from tvkd_client.source import StoreSource


def write(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def training(tiny_teacher, student, tmp_path):
    """Writes the file of a training whose three models share a store, and gives its path."""
    write(tmp_path / "pairs.jsonl", plain(4, seed=7001))
    values = str(tmp_path / "values")
    settings = {
        "model_name_or_path": str(student), "dataset_name": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "out"), "objective": "token", "max_steps": 1, "use_cpu": True, "bf16": False,
        "report_to": "none", "teacher": values, "teacher_id": tiny_teacher.name, "teacher_model": str(tiny_teacher),
        "reference": values, "reference_id": student.name,
    }  # fmt: skip

    def written(**changes) -> str:
        path = tmp_path / "tvkd.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        return str(path)

    return written


@pytest.fixture
def started(tiny_teacher, tmp_path) -> dict[str, str]:
    """Settings of a model that the teacher's training started from: other weights near the teacher's."""
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    torch.manual_seed(5)
    for weight in model.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    folder = tmp_path / "before"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(folder)
    settings = {"teacher_reference": tmp_path / "values", "teacher_reference_model": folder}
    return {name: str(place) for name, place in settings.items()} | {"teacher_reference_id": "before"}


def test_a_training_s_file_fills_its_store_and_the_training_runs_without_a_server(training, started, tmp_path, capsys):
    path = training(**started)
    assert tvkd(["train", "--config", path]) == 2
    assert "tvkd prefetch --store` makes a store" in capsys.readouterr().err
    assert tvkd(["prefetch", "--config", path, "--models"]) == 0
    told = capsys.readouterr()
    assert told.out.count("0 hits, 8 computed") == 3
    for model in ("teacher: tiny-llama", "teacher_reference: before", "reference: tiny-student"):
        assert f"tvkd prefetch: {model}, id " in told.err
    assert tvkd(["train", "--config", path]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert tvkd(["prefetch", "--config", training(objective="tvkd", alpha=0.0), "--models"]) == 0
    assert capsys.readouterr().out.count("8 hits, 0 computed") == 1
    more = write(tmp_path / "held-out.jsonl", plain(4, seed=7002))
    capsys.readouterr()
    assert tvkd(["train", "--config", training(**started, dataset_name=more)]) == 2
    assert re.search(r"lacks completions of model \w+ \(train: 8 of 8 missing\)", capsys.readouterr().err)


@pytest.fixture
def two_tokenizers(byte_teacher, merged_student, tmp_path):
    """Settings of a training whose teacher has a tokenizer of its own."""
    pairs = write(tmp_path / "chats.jsonl", conversational(4, seed=7001))
    return {
        "dataset_name": pairs, "model_name_or_path": str(merged_student), "reference_id": merged_student.name,
        "teacher_tokenizer": str(byte_teacher), "teacher_model": str(byte_teacher), "teacher_id": byte_teacher.name,
    }  # fmt: skip


def test_a_training_s_file_fills_the_teacher_s_own_tokens_through_its_server_and_the_student_s(
    training, two_tokenizers, byte_teacher, tmp_path, capsys
):
    server = start_server(byte_teacher, tmp_path / "of-teacher")
    path = training(**two_tokenizers | {"teacher": server.url, "teacher_tokenizer": "server"})
    try:
        assert tvkd(["prefetch", "--config", path, "--models"]) == 0
        assert capsys.readouterr().out.count("8 sequences") == 2
        assert tvkd(["train", "--config", path]) == 0
        assert server.metric("tvkd_computed_completions_total") == 8  # the training found them all
    finally:
        server.kill()


@pytest.mark.parametrize("several", [False, True], ids=["two splits", "a mixture"])
def test_a_training_s_file_fills_what_it_evaluates_on_too(training, several, server, tmp_path, capsys):
    (tmp_path / "two").mkdir()
    splits = {"train": plain(4, seed=7010), "test": plain(4, seed=7020)}
    files = [write(tmp_path / "two" / f"{split}.jsonl", rows) for split, rows in splits.items()]
    mixture = {"dataset_name": None, "datasets": [{"path": file} for file in files], "test_split_size": 0.25}
    data = mixture if several else {"dataset_name": str(tmp_path / "two")}
    path = training(
        teacher=server.url, teacher_id=None, objective="tvkd", reference=None, reference_id=None, eval_strategy="steps",
        eval_steps=1, **data,
    )  # fmt: skip
    assert tvkd(["prefetch", "--config", path, "--quiet"]) == 0
    assert "16 sequences" in capsys.readouterr().out
    assert tvkd(["train", "--config", path, "--teacher", str(server.store_path)]) == 0
    assert "eval_loss" in (tmp_path / "out" / "metrics.jsonl").read_text()


def test_a_teacher_s_tokenizer_that_is_another_s_is_refused_before_anything_is_computed(
    training, two_tokenizers, merged_student, capsys
):
    path = training(**two_tokenizers | {"teacher_tokenizer": str(merged_student)})
    assert tvkd(["prefetch", "--config", path, "--models"]) == 2
    told = capsys.readouterr()
    assert "has another vocabulary than model byte-llama" in told.err and "sequences" not in told.out
    assert tvkd(["prefetch", "--config", training(**two_tokenizers | {"teacher_tokenizer": "server"}), "--models"]) == 2
    assert "do not come from one: give the folder" in capsys.readouterr().err
    assert tvkd(["prefetch", "--config", training(**two_tokenizers | {"teacher_tokenizer": None}), "--models"]) == 2
    assert "teacher_tokenizer gives the teacher its own tokens" in capsys.readouterr().err


def test_a_model_s_folder_fills_a_store(tiny_teacher, training, tmp_path, capsys):
    training()
    flags = ["--dataset", str(tmp_path / "pairs.jsonl"), "--tokenizer", str(tiny_teacher)]
    model = ["--model", str(tiny_teacher), "--store", str(tmp_path / "values")]
    assert tvkd(["prefetch", *model, *flags]) == 0
    assert "8 sequences" in capsys.readouterr().out
    assert len(StoreSource(tmp_path / "values").reader.teacher_ids()) == 1


@pytest.mark.parametrize(
    ("changes", "flags", "line"),
    [
        ({}, [], "teacher: .*values is a store, which a model has to fill; add --models"),
        ({"teacher_model": None}, ["--models"], "set teacher_model"),
        ({"teacher_model": "/none"}, ["--models"], "/none"),
        ({"objective": "tvkd", "alpha": 0.0, "reference": None}, [], "names no place of values"),
        ({"gamma": 2.0}, [], "gamma 2.0 is not in"),
        ({}, ["--dataset", "pairs.jsonl"], "--config names data"),
        ({}, ["--prompt-column", "question", "--store", "values"], "leave out --prompt-column, --store"),
        ({}, ["--server", "http://127.0.0.1:9"], "give --server, --model or --config, one of them"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(training, capsys, changes, flags, line):
    assert tvkd(["prefetch", "--config", training(**changes), *flags]) == 2
    told = [text for text in capsys.readouterr().err.splitlines() if text.startswith("tvkd prefetch: ")]
    told = [text for text in told if not re.search("pairs of train|: reading ", text)]
    assert len(told) == 1
    assert re.search(line, told[0]), told


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "give --server, --model or --config"),
        (["--model", "x"], "--model needs --store"),
        (["--server", "http://127.0.0.1:9"], "--dataset and --tokenizer are needed"),
        (["--server", "http://127.0.0.1:9", "--store", "values"], "a server fills its own store"),
    ],
)
def test_what_is_missing_is_named(capsys, flags, line):
    assert tvkd(["prefetch", *flags]) == 2
    assert line in capsys.readouterr().err


def test_an_adapter_s_folder_fills_a_store_as_its_merged_model(tiny_teacher, tmp_path, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_teacher), config).save_pretrained(tmp_path / "tuned")
    data = write(tmp_path / "pairs.jsonl", plain(4, seed=7003))
    values = str(tmp_path / "values")
    told = ["prefetch", "--quiet", "--store", values, "--dataset", data, "--tokenizer", str(tiny_teacher)]
    assert tvkd([*told, "--model", str(tmp_path / "tuned")]) == 0
    (merged,) = (tmp_path / "cache" / "tvkd" / "merged").iterdir()
    assert len(StoreSource(values, teacher_id="tuned").teacher_id) == 32
    capsys.readouterr()
    assert tvkd([*told, "--model", str(merged)]) == 0
    assert "8 hits, 0 computed" in capsys.readouterr().out
    (tmp_path / "tuned" / "adapter_model.safetensors").unlink()
    assert tvkd([*told, "--model", str(tmp_path / "tuned")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tvkd prefetch: ")]
    assert len(said) == 1 and "no weights of the adapter" in said[0]
