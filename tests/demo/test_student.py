"""The student is some of the teacher's layers, and distilling brings it back towards the teacher."""

import torch
from transformers import AutoModelForCausalLM

from tvkd.demo import student
from tvkd.demo.logit_bytes import logit_bytes
from tvkd.evaluation.log_probs import completion_logits

PROMPTS = [[4, 20, 21, 5], [4, 22, 5], [9]]
COMPLETIONS = [[8, 9, 2], [10], [11, 12, 13, 14, 2]]


def divergence(teacher, model) -> float:
    with torch.no_grad():
        wanted, said = (completion_logits(one, PROMPTS, COMPLETIONS)[0].log_softmax(-1) for one in (teacher, model))
    return (wanted.exp() * (wanted - said)).sum(-1).mean().item()


def test_the_student_keeps_first_and_last_layers_of_the_teacher(tiny_teacher, monkeypatch):
    monkeypatch.setattr(student, "FIRST", 1)
    monkeypatch.setattr(student, "LAST", 0)
    teacher, first = AutoModelForCausalLM.from_pretrained(tiny_teacher), student.cut(tiny_teacher)
    monkeypatch.setattr(student, "FIRST", 0)
    monkeypatch.setattr(student, "LAST", 1)
    last = student.cut(tiny_teacher)
    for made, place in ((first, 0), (last, -1)):
        assert made.config.num_hidden_layers == len(made.model.layers) == 1
        assert torch.equal(made.model.layers[0].mlp.up_proj.weight, teacher.model.layers[place].mlp.up_proj.weight)
        assert made.model.layers[0].self_attn.layer_idx == 0


def test_distilling_brings_a_cut_model_nearer_to_the_teacher_and_leaves_the_embedding(tiny_teacher, monkeypatch):
    monkeypatch.setattr(student, "FIRST", 1)
    monkeypatch.setattr(student, "LAST", 0)
    monkeypatch.setattr(student, "BATCH", 3)
    teacher, made = AutoModelForCausalLM.from_pretrained(tiny_teacher), student.cut(tiny_teacher)
    before = divergence(teacher, made)
    student.distil(made, teacher, PROMPTS * 20, COMPLETIONS * 20)
    assert divergence(teacher, made) < before / 2
    assert torch.equal(made.get_input_embeddings().weight, teacher.get_input_embeddings().weight)


def test_distributions_are_weighed_as_they_would_be_written(tiny_teacher):
    weighed = logit_bytes(tiny_teacher, PROMPTS, COMPLETIONS)
    assert weighed["full_bf16_logits"] == 2 * 128
    assert 50 * 10 < weighed["top_50_json_lines"] < 50 * 40  # an id and a float16 in decimal, 50 times
