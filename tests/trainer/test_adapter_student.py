"""A student given as an adapter's folder trains on, from the model that it was, as TRL trains a PeftModel."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from runs import SMALL, assert_same_run, rows, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from tvkd.cli import main as tvkd
from tvkd_client.train import build, pairs_of, parse


@pytest.fixture
def adapter(student, tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    get_peft_model(AutoModelForCausalLM.from_pretrained(student), config).save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def test_it_trains_on_as_trl_trains_a_peft_model(adapter, config, student, pairs, tmp_path):
    path = config(model_name_or_path=str(adapter), alpha=0.0, quiet=True, max_steps=3)
    script, training, model, mixture = parse(["--config", path])
    ours = train(build(pairs_of(script, training, mixture), training, model))
    base = AutoModelForCausalLM.from_pretrained(student)
    theirs = train(
        DPOTrainer(
            PeftModel.from_pretrained(base, adapter, is_trainable=True),
            args=DPOConfig(str(tmp_path / "trl"), **SMALL), train_dataset=pairs,
        )
    )  # fmt: skip
    assert ours[0][0] == pytest.approx(0.6931, abs=1e-4)  # the reference is the adapter as it was, not the base
    assert_same_run(ours, theirs)


def test_the_command_saves_it_says_what_it_was_and_resumes(adapter, config, server, tmp_path):
    path = config(model_name_or_path=str(adapter), teacher=server.url, quiet=True, save_strategy="steps", save_steps=2)
    assert tvkd(["train", "--config", path]) == 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    assert json.loads((tmp_path / "out" / "tvkd.json").read_text())["student"] == str(adapter)
    again = ["--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", str(tmp_path / "out/checkpoint-2")]
    assert tvkd(["train", "--config", path, *again]) == 0
    resumed = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[name], after[name]) for name in after)


def changed(adapter, **settings) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"base_model_name_or_path": None}, "does not name the base model"),
        ({"base_model_name_or_path": "some-team/their-base"}, "some-team/their-base"),
        ({"task_type": "SEQ_CLS"}, "is for SEQ_CLS, not for a causal LM"),
        ({"target_modules": ["q_proj"]}, "does not fit"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(adapter, config, capsys, settings, line):
    changed(adapter, **settings)
    assert tvkd(["train", "--config", config(model_name_or_path=str(adapter), alpha=0.0, quiet=True)]) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("tvkd train: ")]
    assert len(said) == 1 and line in said[0]


def test_a_new_adapter_on_it_is_refused(adapter, config, capsys):
    path = config(model_name_or_path=str(adapter), alpha=0.0, use_peft=True)
    assert tvkd(["train", "--config", path]) == 2
    assert "use_peft asks for a new one" in capsys.readouterr().err


def test_prefetch_tokenises_as_its_tokenizer_or_its_base_s_does(adapter, config, server, student, capsys):
    path = config(model_name_or_path=str(adapter), teacher=server.url, quiet=True)
    assert tvkd(["prefetch", "--config", path]) == 0
    for file in student.glob("tokenizer*"):
        shutil.copy(file, adapter)
    assert tvkd(["prefetch", "--config", path]) == 0
    assert f"{2 * len(rows(8))} hits, 0 computed" in capsys.readouterr().out
