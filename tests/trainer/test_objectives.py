"""Every objective with one tokenizer: loss, gradient and metrics, and reference log-probs from a store.

They are compared with a float64 computation from raw logits of all four models.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from objectives_by_hand import BETA, loss_by_hand, metrics_by_hand, pairs_by_hand
from peft import LoraConfig
from runs import assert_same_gradient, moved_weights, rows, train
from teacher_source import TeacherSource

from tvkd_client.objective import DISPLACED, UNLEARNS
from tvkd_shared.errors import WrongAnswer
from tvkd_shared.objective import soft_label_loss, token_loss
from tvkd_shared.record import Record

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
LONGEST = 10
OF_ADVANTAGES = [
    {"objective": "token"},
    {"objective": "token", "strength": 3.0, "center": True, "dpo_weight": 0.5},
    {"objective": "soft-label", "strength": 0.3},
    {"objective": "tvkd", "alpha": 0.7, "potential": "implicit"},
]
OF_ONE_MODEL = [
    {"objective": "tvkd", "alpha": 0.0},
    {"objective": "tvkd", "alpha": 0.7},
    {"objective": "tvkd", "alpha": -0.4, "gamma": 0.9, "temperature": 2.0, "terminal": "zero"},
    {"objective": "tvkd", "alpha": 3.0, "gamma": 0.95, "potential": "renyi", "temperature": 2.0,
     "terminal": "last-decision"},
    {"objective": "tvkd", "alpha": 5.0, "gamma": 0.0, "potential": "entropy", "aggregate": "mean"},
    {"objective": "tvkd", "alpha": 0.7, "gamma": 0.9, "form": "tpkd-ref"},
]  # fmt: skip


def name_of(settings: dict) -> str:
    return "-".join(map(str, settings.values()))


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("settings", "one_teacher"),
    [pytest.param(settings, False, id=name_of(settings)) for settings in OF_ADVANTAGES + OF_ONE_MODEL]
    + [pytest.param(settings, True, id=f"{name_of(settings)}-one-teacher") for settings in OF_ADVANTAGES],
)
def test_loss_and_gradient_are_the_definition(make_trainer, roles, settings, peft_config, one_teacher):
    if one_teacher:
        del roles["teacher_reference"]
    trainer = make_trainer(
        beta=BETA, **settings, sources=roles, peft_config=peft_config, per_device_train_batch_size=4, max_length=LONGEST
    )
    trained = moved_weights(trainer)
    data = list(trainer.train_dataset)

    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(data[:4]))
    gradient = torch.autograd.grad(loss, trained)

    hands = pairs_by_hand(data, trainer.model, roles, settings, LONGEST)
    assert {one.is_cut for pair in hands[:4] for one in pair} == {True, False}
    wanted = loss_by_hand(settings, hands[:4], hands)
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


@pytest.mark.parametrize("settings", OF_ADVANTAGES, ids=name_of)
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
        make_trainer(alpha=0.0, sources={"reference": TeacherSource(started, teacher_id="another")})
    make_trainer(
        alpha=0.0, sources={"reference": TeacherSource(started, teacher_id="another")}, reference_tolerance=100.0
    )


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("settings", OF_ADVANTAGES[:3], ids=name_of)
def test_without_a_stored_reference_the_reference_s_forward_is_used(make_trainer, roles, settings, peft_config):
    fewer = {role: source for role, source in roles.items() if role != "reference"}
    settings = settings | {"peft_config": peft_config, "max_length": LONGEST}
    stored, computed = (make_trainer(**settings, sources=of) for of in (roles, fewer))
    (losses, _), (others, _) = train(stored), train(computed)
    assert losses == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("settings", OF_ADVANTAGES[:3], ids=name_of)
def test_a_step_s_loss_does_not_depend_on_how_its_tokens_are_spread(make_trainer, roles, settings):
    """Micro-batches of unequal length: a mean for each would weigh their tokens otherwise."""
    sgd = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "train_sampling_strategy": "sequential"}
    settings = settings | sgd | {"sources": roles, "max_length": LONGEST}
    _, whole = train(make_trainer(**settings, per_device_train_batch_size=4))
    _, spread = train(make_trainer(**settings, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert all(torch.allclose(whole[name], spread[name], atol=1e-6) for name in whole)


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


@pytest.mark.parametrize("settings", OF_ADVANTAGES[1:3], ids=name_of)
def test_metrics_of_a_step_are_their_definitions(make_trainer, roles, settings):
    trainer = make_trainer(
        beta=BETA, **settings, sources=roles, max_steps=1, per_device_train_batch_size=8, max_length=LONGEST
    )
    moved_weights(trainer)
    hands = pairs_by_hand(list(trainer.train_dataset), trainer.model, roles, settings, LONGEST)
    trainer.model.float()
    trainer.train()
    first, wanted = trainer.state.log_history[0], metrics_by_hand(settings, hands, hands)
    assert {name: first[name] for name in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert 0 < wanted["rewards/dpo_accuracies"] < 1 and wanted["token/kl"] > 1e-3


class Lower(TeacherSource):
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
        teacher = Lower(directory, teacher_id="T")
        teacher.lower = lower
        sources = {"teacher": teacher, base: TeacherSource(directory, teacher_id="T0")}
        caplog.clear()
        make_trainer(
            objective="token", center=center, sources=sources, per_device_train_batch_size=8, max_steps=8
        ).train()
        told = [record.message for record in caplog.records if record.name.startswith("tvkd")]
        expected = warns and (one_teacher or not center)
        assert len(told) == expected, told
        if expected:
            assert ("teacher_reference" if one_teacher else "center: true") in told[0]
