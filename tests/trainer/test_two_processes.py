"""A step of two processes is a step along the gradient of the whole batch, as float64 computes it from raw logits."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import objectives_by_hand
import pytest
import spans_by_hand
import torch
from datasets import Dataset
from objectives_by_hand import BETA, loss_by_hand, metrics_by_hand
from peft import LoraConfig
from runs import assert_same_gradient, moved_model, moved_weights, rows, trainer_of
from teacher_source import TeacherSource

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
# Four rows of unequal length for a step. Of the weights before and after it, the difference is the gradient.
STEP = {
    "beta": BETA, "per_device_train_batch_size": 2, "train_sampling_strategy": "sequential", "max_steps": 1,
    "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
}  # fmt: skip
TOKEN = {"objective": "token", "strength": 3.0, "center": True, "dpo_weight": 0.5}
SOFT = {"objective": "soft-label", "strength": 0.3}
ALL = ("teacher", "teacher_reference", "reference")
CASES = [
    # objective, roles that have a source, adapter, whether the teacher has a tokenizer of its own
    (TOKEN, ALL, None, False),
    (TOKEN | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}, ALL[:2], LORA, False),
    ({"objective": "token"}, ("teacher", "reference"), LORA, False),
    ({"objective": "token"}, ("teacher",), None, False),
    (SOFT, ALL, LORA, False),
    (SOFT, ALL[:2], None, False),
    ({"objective": "tvkd", "alpha": 0.7, "gamma": 0.9, "terminal": "zero"}, ALL, LORA, False),
    ({"objective": "tvkd", "alpha": 0.7, "potential": "implicit"}, ALL[:2], None, False),
    (TOKEN, ALL, None, True),
    ({"objective": "token"}, ("teacher",), LORA, True),
    (SOFT, ("teacher", "reference"), None, True),
]


def name_of(case) -> str:
    settings, roles, adapter, own_tokenizer = case
    words = [settings["objective"], *roles, "lora" if adapter else "full", "own-tokenizer" if own_tokenizer else "one"]
    return "-".join(words)


@pytest.fixture(scope="module")
def of_tokenizers(tiny_teacher, started, student, byte_teacher, merged_student, tmp_path_factory):
    """Settings, rows and a source of each role, by whether the teacher has a tokenizer of its own."""
    byte_started = moved_model(byte_teacher, tmp_path_factory.mktemp("started") / "byte-t0")
    folders = {False: (tiny_teacher, started, student), True: (byte_teacher, byte_started, merged_student)}
    sources = {
        own: {role: TeacherSource(folder, teacher_id=role) for role, folder in zip(ALL, of, strict=True)}
        for own, of in folders.items()
    }
    return {
        False: ({"max_length": 10}, rows(8), sources[False]),
        True: ({"max_length": 18, "teacher_tokenizer": str(byte_teacher)}, spans_by_hand.CHATS, sources[True]),
    }


def training_of(case, of_tokenizers) -> dict:
    settings, roles, adapter, own_tokenizer = case
    of_tokenizer, pairs, sources = of_tokenizers[own_tokenizer]
    return {
        "student": sources["reference"].directory, "data": Dataset.from_list(pairs), "peft_config": adapter,
        "sources": {role: sources[role] for role in roles}, **STEP, **of_tokenizer, **settings,
    }  # fmt: skip


@pytest.fixture(scope="module")
def steps(of_tokenizers, tmp_path_factory):
    """What two processes made of each case: the weights after one step, and what was logged."""
    file = tmp_path_factory.mktemp("steps") / "trainings.pickle"
    file.write_bytes(pickle.dumps([training_of(case, of_tokenizers) for case in CASES]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run(
        [*launch, Path(__file__).with_name("two_processes.py"), file],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [torch.load(file.parent / f"{place}.pt") for place in range(len(CASES))]


@pytest.mark.parametrize("place", range(len(CASES)), ids=map(name_of, CASES))
def test_a_step_of_two_processes_is_the_gradient_of_the_whole_batch(steps, of_tokenizers, tmp_path, place):
    case = CASES[place]
    settings, given, _, own_tokenizer = case
    of_tokenizer, _, sources = of_tokenizers[own_tokenizer]
    trainer = trainer_of(**training_of(case, of_tokenizers), output=tmp_path)
    trained = moved_weights(trainer)
    before = [weight.detach().clone() for weight in trained]

    by_hand = spans_by_hand if own_tokenizer else objectives_by_hand
    roles = {role: source for role, source in sources.items() if role in given or role == "reference"}
    hands = by_hand.pairs_by_hand(
        list(trainer.train_dataset), trainer.model, roles, settings, of_tokenizer["max_length"]
    )
    gradient = torch.autograd.grad(loss_by_hand(settings, hands[:4], hands), trained)
    after, logged = steps[place]
    assert_same_gradient([was - now for was, now in zip(before, after, strict=True)], gradient)
    wanted = metrics_by_hand(settings, hands[:4], hands)
    if settings.get("gradient_accumulation_steps"):
        wanted = {"loss": wanted["loss"]}  # metrics are means over micro-batches, whatever their lengths
    assert {name: logged[name] for name in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-3)
