"""The README of examples/teacher: its commands make a teacher and the model that its DPO started from."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_models import ask, load
from tvkd_client.train import parse
from tvkd_shared.shaping import Shaping

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "teacher"
README = (EXAMPLE / "README.md").read_text()
SMALL = re.search(r"## A small one(.*?)\n## ", README, re.DOTALL)[1]
LORA = re.search(r"## With LoRA(.*?)\n## ", README, re.DOTALL)[1]


# One process imports the libraries once; TRL's command starts two for each training, by way of accelerate's launcher.
ONE_PROCESS = """
import runpy, shlex, sys
from accelerate.commands import launch
from trl.cli import main

def script(path, *flags):
    sys.argv = [path, *flags]
    runpy.run_path(path, run_name="__main__")

launch.simple_launcher = lambda given: script(given.training_script, *given.training_script_args)
for line in sys.stdin:
    print(line, end="", flush=True)
    program, *words = shlex.split(line)
    script(*words) if program == "python" else main(words)
"""


def commands(section: str) -> list[str]:
    return re.findall(r"^    ((?:python|trl) .*)$", section, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the example in which the small commands were run, and what those without LoRA printed."""
    copy = tmp_path_factory.mktemp("examples") / "teacher"
    shutil.copytree(EXAMPLE, copy)
    plain, lora = commands(SMALL), commands(LORA)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        done = subprocess.run(
            [sys.executable, "-c", ONE_PROCESS], input="\n".join(plain + lora), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield copy, done.stdout.partition(lora[0])[0]


def log_prob(model: Path, question: str, answer: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    with torch.no_grad():
        log_probs = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(len(prompt), len(ids)))


@pytest.mark.parametrize(("before", "after"), [("T0", "T1"), ("T0-merged", "T1-lora")])
def test_dpo_makes_the_polite_answer_likelier_than_sft_does(folder, before, after):
    question, polite, curt = "please tell me the colour of snow", "gladly , snow is white", "no idea , maybe white"
    t0, t1 = (
        log_prob(folder[0] / "out" / name, question, polite) - log_prob(folder[0] / "out" / name, question, curt)
        for name in (before, after)
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


@pytest.mark.parametrize("name", ["T0", "T1", "T1-lora"])
def test_a_value_server_answers_for_each(folder, name, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder[0] / "cache"))
    model = folder[0] / "out" / name
    ((record,),) = ask(load(model), ([6, 7], [[8, 0]], [1.0]))
    with torch.no_grad():  # transformers puts an adapter's weights beside its base's, and merges nothing
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([[6, 7, 8, 0]])).logits[0, 1:]
    np.testing.assert_allclose(record.value(), logits.logsumexp(-1), atol=1e-4)


def test_a_merged_adapter_gives_the_adapters_logits(folder):
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


def test_every_setting_of_the_papers_student_is_one_of_ours():
    """`parse` refuses settings that it does not know, a folder that is not there, and bfloat16 without a GPU."""
    here = ["--model_name_or_path", str(EXAMPLE), "--bf16", "false", "--use_cpu", "true"]
    _, training, _, _ = parse(["--config", str(EXAMPLE / "paper" / "tvkd.yaml"), *here])
    assert (training.num_train_epochs, training.learning_rate, training.beta, training.alpha) == (5, 5e-7, 0.01, 0.7)
    assert (training.objective, training.recipe, training.shaping) == ("tvkd", None, Shaping())
