"""The student's log-probs, its first layers, and what is said of it on held-out pairs."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from tvkd.demo import student
from tvkd.demo.logit_bytes import logit_bytes
from tvkd.demo.training import BETA, held_out

PROMPTS = [[4, 20, 21, 5], [4, 22, 5], [9]]
COMPLETIONS = [[8, 9, 2], [10], [11, 12, 13, 14, 2]]


def test_log_probs_of_a_padded_batch_are_those_of_each_row_alone(tiny_teacher):
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    alone = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        alone.append(logits.log_softmax(-1)[range(len(completion)), completion].sum().item())
    together = student.batched_log_probs(model, PROMPTS, COMPLETIONS, batch=3)
    assert together.tolist() == pytest.approx(alone, abs=1e-4)
    assert student.batched_log_probs(model, PROMPTS, COMPLETIONS, batch=2).tolist() == pytest.approx(alone, abs=1e-4)


def test_the_student_keeps_the_teachers_first_layers_and_leaves_the_embedding_untrained(tiny_teacher, monkeypatch):
    monkeypatch.setattr(student, "LAYERS", 1)
    teacher, cut = AutoModelForCausalLM.from_pretrained(tiny_teacher), student.cut(tiny_teacher)
    assert cut.config.num_hidden_layers == len(cut.model.layers) == 1
    assert torch.equal(cut.model.layers[0].mlp.up_proj.weight, teacher.model.layers[0].mlp.up_proj.weight)
    assert not cut.get_input_embeddings().weight.requires_grad


def test_fine_tuning_raises_the_completions_log_prob(tiny_teacher, monkeypatch):
    monkeypatch.setattr(student, "BATCH", 3)
    monkeypatch.setattr(student, "EPOCHS", 10)
    model = student.load(tiny_teacher)
    before = student.batched_log_probs(model, PROMPTS, COMPLETIONS)
    student.fine_tune(model, PROMPTS, COMPLETIONS)
    assert (student.batched_log_probs(model, PROMPTS, COMPLETIONS) > before).all()


def test_an_untrained_student_has_no_margin_and_a_loss_of_log_2():
    log_probs = torch.tensor([[-3.0, -4.0], [-5.0, -2.0]])
    untrained = held_out(log_probs, log_probs)
    assert untrained.margin == 0 and untrained.accuracy == 0
    assert untrained.loss == pytest.approx(math.log(2))


def test_the_held_out_reward_is_the_log_ratio_to_the_reference_times_beta():
    policy, reference = torch.tensor([[-1.0, -4.0], [-5.0, -2.0]]), torch.tensor([[-3.0, -4.0], [-5.0, -3.0]])
    run = held_out(policy, reference)
    assert run.margin == pytest.approx(BETA * (2 - 1) / 2)
    assert run.accuracy == 0.5
    assert run.error == pytest.approx(math.sqrt(0.25 / 2))


def test_distributions_are_weighed_as_they_would_be_written(tiny_teacher):
    weighed = logit_bytes(tiny_teacher, PROMPTS, COMPLETIONS)
    assert weighed["full_bf16_logits"] == 2 * 128
    assert 50 * 10 < weighed["top_50_json_lines"] < 50 * 40  # an id and a float16 in decimal, 50 times
