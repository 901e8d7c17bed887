"""The README of examples/teacher: its commands make a teacher and the model that its DPO started from."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_models import ask, load

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "teacher"
README = (EXAMPLE / "README.md").read_text()
SMALL = re.search(r"## A small one(.*?)\n## ", README, re.DOTALL)[1]
LORA = re.search(r"## With LoRA(.*?)\n## ", README, re.DOTALL)[1]


def run(section: str) -> str:
    """What the commands of a section print, in the current folder."""
    commands = "\n".join(re.findall(r"^    ((?:python|trl) .*)$", section, re.MULTILINE))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", commands],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the example in which the commands of the small recipe were run, and what they printed."""
    copy = tmp_path_factory.mktemp("examples") / "teacher"
    shutil.copytree(EXAMPLE, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        yield copy, run(SMALL)


def log_prob(model: Path, question: str, answer: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    with torch.no_grad():
        log_probs = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(len(prompt), len(ids)))


def test_dpo_makes_the_polite_answer_likelier_than_sft_does(folder):
    question, polite, curt = "please tell me the colour of snow", "gladly , snow is white", "no idea , maybe white"
    t0, t1 = (
        log_prob(folder[0] / "out" / name, question, polite) - log_prob(folder[0] / "out" / name, question, curt)
        for name in ("T0", "T1")
    )
    assert t1 > t0 + 1


def test_the_output_is_what_the_readme_says(folder):
    _, printed = folder
    assert re.search(r"out/base, .*", SMALL)[0] in printed
    written, seen = (
        dict(re.findall(r"'(eval_rewards/(?:accuracies|margins))': '(.*?)'", text)) for text in (SMALL, printed)
    )
    assert len(written) == 2
    for name, number in written.items():
        assert float(seen[name]) == pytest.approx(float(number), rel=0.1)


@pytest.mark.parametrize("name", ["T0", "T1"])
def test_a_value_server_takes_both(folder, name):
    (answer,) = ask(load(folder[0] / "out" / name), ([6, 7], [[8, 0]], [1.0]))
    assert answer[0].length == 2


def test_a_merged_adapter_gives_the_adapters_logits(folder):
    run(LORA)
    adapter, merged = folder[0] / "out" / "T0-lora", folder[0] / "out" / "T0-merged"
    ids = torch.arange(6, 16)[None]
    with torch.no_grad():
        expected = AutoPeftModelForCausalLM.from_pretrained(adapter)(ids).logits
        base = AutoModelForCausalLM.from_pretrained(folder[0] / "out" / "base")(ids).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(merged)(ids).logits, expected)
    assert (expected - base).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["paper", "small"])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_every_setting_of_a_recipe_is_one_of_trl_or_accelerate(kind, stage):
    parser = runpy.run_module(f"trl.scripts.{stage}")["make_parser"]()
    file = EXAMPLE / kind / f"{stage}.yaml"
    parsed = parser.parse_args_and_config(
        ["--config", str(file), "--bf16", "false", "--use_cpu", "true"], return_remaining_strings=True
    )
    given = yaml.safe_load(file.read_text())
    launcher = {"accelerate_config", "num_processes"} & given.keys()
    assert [word for word in parsed[-1] if word.startswith("--")] == [f"--{name}" for name in given if name in launcher]
