"""Objectives token and soft-label, potential implicit, and reference log-probs from a store.

Loss and gradient are compared with a float64 computation from raw logits of all four models: no store, no trainer of
ours, one sequence at a time, no padding.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from runs import assert_same_gradient, assert_same_run, moved_weights, rows, train
from teacher_source import TeacherSource
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tvkd_client.collator import SCORES
from tvkd_client.objective import DISPLACED, UNLEARNS
from tvkd_shared.errors import InvalidRequest, WrongAnswer
from tvkd_shared.objective import soft_label_loss, token_loss
from tvkd_shared.record import Record

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
BETA = 0.1
LONGEST = 10
OBJECTIVES = [
    {"objective": "token"},
    {"objective": "token", "strength": 3.0, "center": True, "dpo_weight": 0.5},
    {"objective": "soft-label", "strength": 0.3},
    {"objective": "tvkd", "alpha": 0.7, "potential": "implicit"},
    {"objective": "tvkd", "alpha": 0.0},
]


class Named(TeacherSource):
    def __init__(self, directory, name: str) -> None:
        super().__init__(directory)
        self.teacher_id = name


@pytest.fixture(scope="session")
def started(tiny_teacher, tmp_path_factory):
    """T0: the teacher before its training, here the teacher with other weights near its own."""
    model = LlamaForCausalLM.from_pretrained(tiny_teacher)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    directory = tmp_path_factory.mktemp("started") / "t0"
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def roles(tiny_teacher, started, student):
    return {
        "teacher": Named(tiny_teacher, "T"),
        "teacher_reference": Named(started, "T0"),
        "reference": Named(student, "S0"),
    }


def double(model) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)


def log_probs(model, row: dict, side: str) -> torch.Tensor:
    """log π of each kept token."""
    prompt, completion = row["prompt_ids"], row[side][: LONGEST - len(row["prompt_ids"])]
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(completion)), completion]


def by_hand(settings: dict, policy, reference, teacher, base, batch: list[dict], data: list[dict]) -> torch.Tensor:
    """The loss of a batch as the definitions read, float64; A's mean is taken over `data`."""
    sides = ("chosen_ids", "rejected_ids")

    def advantages(rows):
        return [[log_probs(teacher, row, side) - log_probs(base, row, side) for side in sides] for row in rows]

    with torch.no_grad():
        A = advantages(batch)
        c = torch.cat([token for pair in advantages(data) for token in pair]).mean() if settings.get("center") else 0.0
        behind = [[log_probs(reference, row, side) for side in sides] for row in batch]
    lr = [
        [log_probs(policy, row, side) - b for side, b in zip(sides, pair, strict=True)]
        for row, pair in zip(batch, behind, strict=True)
    ]
    k = settings.get("strength", 1.0)
    delta = torch.stack([chosen.sum() - rejected.sum() for chosen, rejected in lr])
    margin = torch.stack([chosen.sum() - rejected.sum() for chosen, rejected in A])
    if settings["objective"] == "tvkd":
        return -logsigmoid(BETA * delta + settings["alpha"] * margin).mean()
    if settings["objective"] == "soft-label":
        p = torch.sigmoid(k * margin)
        return (-p * logsigmoid(BETA * delta) - (1 - p) * logsigmoid(-BETA * delta)).mean()
    errors = [(x - k * (a - c)) ** 2 for pair, of in zip(lr, A, strict=True) for x, a in zip(pair, of, strict=True)]
    return torch.cat(errors).mean() - settings.get("dpo_weight", 0.0) * logsigmoid(BETA * delta).mean()


@pytest.mark.parametrize("one_teacher", [False, True], ids=["two-models", "one-teacher"])
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("settings", OBJECTIVES, ids=lambda s: f"{s['objective']}-{len(s)}")
def test_loss_and_gradient_are_the_definition(make_trainer, roles, student, settings, peft_config, one_teacher):
    if one_teacher:
        del roles["teacher_reference"]
    trainer = make_trainer(
        beta=BETA, **settings, sources=roles, peft_config=peft_config, per_device_train_batch_size=4, max_length=LONGEST
    )
    trained = moved_weights(trainer)
    data = list(trainer.train_dataset)
    assert any(len(row["prompt_ids"]) + len(row["chosen_ids"]) > LONGEST for row in data[:4])

    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(data[:4]))
    gradient = torch.autograd.grad(loss, trained)

    policy = trainer.model.double()
    teacher = double(roles["teacher"].directory)
    base = double((roles.get("teacher_reference") or roles["reference"]).directory)
    wanted = by_hand(settings, policy, double(student), teacher, base, data[:4], data)
    wanted_gradient = torch.autograd.grad(wanted, trained)

    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-5)
    assert_same_gradient(gradient, wanted_gradient)


def test_the_reference_maths_is_the_definition():
    lr, A = [np.array([0.5, -1.0]), np.array([2.0])], [np.array([1.0, 0.0]), np.array([-1.0])]
    assert token_loss(lr, A, 2.0, 0.5) == pytest.approx(np.mean([(0.5 - 1) ** 2, (-1 + 1) ** 2, (2 + 3) ** 2]))
    p, z = 1 / (1 + np.exp(-0.6)), 0.1 * 3.0
    wanted = -p * np.log(1 / (1 + np.exp(-z))) - (1 - p) * np.log(1 / (1 + np.exp(z)))
    assert soft_label_loss(0.1, [3.0], 0.3, [2.0])[0] == pytest.approx(wanted)
    assert soft_label_loss(0.1, [3.0], 1.0, [1e6])[0] == pytest.approx(np.log1p(np.exp(-z)))


@pytest.mark.parametrize("settings", OBJECTIVES[:4], ids=lambda s: f"{s['objective']}-{len(s)}")
def test_one_policy_forward_a_step_and_no_reference_forward(make_trainer, roles, settings):
    trainer = make_trainer(**settings, sources=roles)
    assert trainer.ref_model is None
    calls = []
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)[:2]))
    assert len(calls) == 1


def test_reference_log_probs_from_a_store_train_as_trl_s_own(make_trainer, roles):
    of_trl = make_trainer(alpha=0.0)
    assert of_trl.ref_model is not None
    stored = make_trainer(alpha=0.0, sources={"reference": roles["reference"]})
    (losses, weights), (others, same) = train(of_trl), train(stored)
    assert losses == pytest.approx(others, abs=1e-5)
    assert all(torch.allclose(weights[name], same[name], atol=1e-4) for name in weights)


def test_other_pairs_are_evaluated_after_training_with_a_stored_reference(make_trainer, roles):
    held_out, found = Dataset.from_list(rows(4, seed=9)), []
    for sources in ({}, {"reference": roles["reference"]}):
        trainer = make_trainer(alpha=0.0, sources=sources)
        train(trainer)
        found.append(trainer.evaluate(held_out)["eval_loss"])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_the_reference_of_another_student_stops_the_run(make_trainer, started):
    with pytest.raises(WrongAnswer, match=r"nats a token .* is not this student.*reference_tolerance"):
        make_trainer(alpha=0.0, sources={"reference": Named(started, "another")})
    make_trainer(alpha=0.0, sources={"reference": Named(started, "another")}, reference_tolerance=100.0)


@pytest.mark.parametrize("settings", OBJECTIVES[:3], ids=lambda s: f"{s['objective']}-{len(s)}")
def test_without_a_stored_reference_the_reference_s_forward_is_used(make_trainer, roles, settings):
    fewer = {role: source for role, source in roles.items() if role != "reference"}
    stored, computed = (make_trainer(**settings, sources=of, max_length=LONGEST) for of in (roles, fewer))
    (losses, _), (others, _) = train(stored), train(computed)
    assert losses == pytest.approx(others, abs=1e-4)


def test_a_step_s_loss_does_not_depend_on_how_its_tokens_are_spread(make_trainer, roles):
    settings = {"objective": "token", "sources": roles, "max_steps": 2, "train_sampling_strategy": "sequential"}
    _, whole = train(make_trainer(**settings, per_device_train_batch_size=4))
    _, spread = train(make_trainer(**settings, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    # Adam divides by the gradient's size, which makes more of rounding where the gradient is near 0.
    assert all(torch.allclose(whole[name], spread[name], atol=2e-4) for name in whole)


def test_a_student_learns_the_advantage(make_trainer, roles):
    trainer = make_trainer(
        objective="token", sources=roles, max_steps=40, train_dataset=Dataset.from_list(rows(4)), logging_steps=1
    )
    trainer.train()
    first, *_, last, _ = trainer.state.log_history
    assert last["token/error"] < 0.5 * first["token/error"]
    assert first["token/explained"] < 0.05 < last["token/explained"] < 1
    assert first["token/kl"] == pytest.approx(0, abs=1e-4) and last["token/kl"] > 0
    assert first["dpo_loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert first["loss"] == pytest.approx(first["token/error"], rel=1e-3)


def test_metrics_of_a_step_are_their_definitions(make_trainer, roles):
    trainer = make_trainer(objective="token", strength=2.0, sources=roles, max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    first = trainer.state.log_history[0]
    batch = trainer.data_collator(list(trainer.train_dataset))
    kept = batch["completion_mask"][:, 1:].bool().numpy()
    of = batch[SCORES].result().log_probs
    A = (of["teacher"] - of["teacher_reference"])[kept]
    assert first["advantage/mean"] == pytest.approx(A.mean(), abs=1e-4)
    assert first["advantage/std"] == pytest.approx(A.std(), rel=1e-3)
    assert first["token/error"] == pytest.approx(np.mean((2 * A) ** 2), rel=1e-3)
    assert first["token/explained"] == pytest.approx(1 - np.mean((2 * A) ** 2) / np.var(2 * A), abs=1e-3)


class Lower(Named):
    """A teacher that gives every token's log-prob less by a number of nats."""

    lower = 0.0

    def fetch(self, prompts, completions) -> list[Record]:
        return [
            Record.of({1.0: record.value() + np.float32(self.lower)}, record.action_logits, record.entropies)
            for record in super().fetch(prompts, completions)
        ]


@pytest.mark.parametrize("one_teacher", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_a_teacher_that_lowers_all_likelihoods_is_named(make_trainer, roles, started, caplog, one_teacher, center):
    base = "reference" if one_teacher else "teacher_reference"
    directory = roles[base].directory
    for lower, warns in ((0.1, False), (UNLEARNS + DISPLACED, True)):
        teacher = Lower(directory, "T")
        teacher.lower = lower
        sources = {"teacher": teacher, base: Named(directory, "T0")}
        caplog.clear()
        make_trainer(
            objective="token", center=center, sources=sources, per_device_train_batch_size=8, max_steps=8
        ).train()
        told = [record.message for record in caplog.records if record.name.startswith("tvkd")]
        expected = warns and (one_teacher or not center)
        assert len(told) == expected, told
        if expected:
            assert ("teacher_reference" if one_teacher else "center: true") in told[0]


def test_roles_that_do_not_go_together_are_refused(make_trainer, roles):
    with pytest.raises(InvalidRequest, match=r"teacher and teacher_reference are one model"):
        make_trainer(objective="token", sources=roles | {"teacher_reference": roles["teacher"]})
    with pytest.raises(InvalidRequest, match=r"center needs A .* neither teacher_reference nor reference is set"):
        make_trainer(objective="token", center=True, sources={"teacher": roles["teacher"]})
    with pytest.raises(InvalidRequest, match=r"potential implicit .* neither"):
        make_trainer(alpha=0.7, potential="implicit", sources={"teacher": roles["teacher"]})
    with pytest.raises(InvalidRequest, match="no teacher is set"):
        make_trainer(objective="token", sources={"reference": roles["reference"]})
    with pytest.raises(InvalidRequest, match="sources name student"):
        make_trainer(alpha=0.0, sources={"student": roles["teacher"]})


def test_a_resumed_token_run_ends_where_the_whole_run_ends(make_trainer, roles, tmp_path):
    settings = {"objective": "token", "center": True, "sources": roles, "max_steps": 4, "save_strategy": "steps"}
    losses, weights = train(make_trainer(**settings, save_steps=2))
    rest, resumed = train(
        make_trainer(**settings, save_steps=2, output_dir=tmp_path / "again"),
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"),
    )
    assert_same_run((losses[2:], weights), (rest, resumed))
