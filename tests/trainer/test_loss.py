"""The shaped loss and its gradient, against an independent computation from raw logits."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from runs import assert_same_gradient, moved_weights
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from tvkd_client import Shaping, TVKDTrainer
from tvkd_client.collator import SCORES, Scores
from tvkd_shared.ending import end_of_sequence
from tvkd_shared.objective import tvkd_loss

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
BETA = 0.1
READINGS = [
    (0.7, Shaping()),
    (-0.4, Shaping(gamma=0.9)),
    (0.7, Shaping(gamma=0.9, temperature=2.0, terminal="zero")),
    (3.0, Shaping(gamma=0.95, potential="renyi", temperature=2.0, terminal="last-decision")),
    (5.0, Shaping(gamma=0.0, potential="entropy", aggregate="mean")),
]


def settings(choices: Shaping) -> dict:
    return {name: getattr(choices, name) for name in Shaping.__dataclass_fields__}


def log_prob(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(completion)), completion].sum()


def expected(trainer: TVKDTrainer, reference, source, alpha: float, choices: Shaping, rows: list[dict]):
    """Loss by `tvkd_loss`, and the same as a torch scalar for its gradient; one sequence at a time, no padding."""
    margins, shapings = [], []
    for row in rows:
        sides = {}
        for side in ("chosen_ids", "rejected_ids"):
            prompt, completion = row["prompt_ids"], row[side]
            record = source.fetch([prompt], [completion])[0]
            end = end_of_sequence(completion, {2}, lambda token: token == 7)
            with torch.no_grad():
                behind = log_prob(reference, prompt, completion)
            ratio = log_prob(trainer.model, prompt, completion) - behind
            sides[side] = (ratio, choices.of(record, kept=len(completion), end=end))
        (chosen, s_chosen), (rejected, s_rejected) = sides["chosen_ids"], sides["rejected_ids"]
        margins.append(chosen - rejected)
        shapings.append(s_chosen - s_rejected)
    margin = torch.stack(margins)
    loss = tvkd_loss(BETA, margin.detach().numpy(), alpha, shapings).mean()
    return loss, -logsigmoid(BETA * margin + alpha * torch.tensor(shapings, dtype=margin.dtype)).mean()


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("alpha", "choices"), READINGS, ids=str)
def test_loss_and_gradient_are_the_definition(make_trainer, student, source, alpha, choices, peft_config):
    trainer = make_trainer(
        alpha=alpha, beta=BETA, **settings(choices), source=source, peft_config=peft_config,
        per_device_train_batch_size=4, max_length=None,
    )  # fmt: skip
    weights = moved_weights(trainer)
    rows = [trainer.train_dataset[index] for index in range(4)]

    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    gradient = torch.autograd.grad(loss, weights, allow_unused=True)
    reference = AutoModelForCausalLM.from_pretrained(student)
    wanted, scalar = expected(trainer, reference, source, alpha, choices, rows)
    wanted_gradient = torch.autograd.grad(scalar, weights, allow_unused=True)

    assert abs(loss.item() - wanted) < 1e-5
    assert_same_gradient(gradient, wanted_gradient)


def test_a_large_common_part_of_both_shapings_costs_no_precision(make_trainer, source):
    trainer = make_trainer(alpha=1.0, beta=0.01, source=source)
    rows = [trainer.train_dataset[index] for index in range(2)]
    batch = trainer.data_collator(rows)
    shaping = np.array([2.0, 1.0, 1.5371, 1.5123])
    near, far = ({**batch, SCORES: Scores(S, {})} for S in (shaping, shaping + 123_456.789))
    losses = [trainer.compute_loss(trainer.model, one).item() for one in (near, far)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_rewards_are_logged_with_and_without_shaping(make_trainer, source):
    trainer = make_trainer(alpha=0.7, gamma=0.9, source=source)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/chosen"] == pytest.approx(first["shaping/chosen"], abs=1e-5) != 0
    assert first["rewards/rejected"] == pytest.approx(first["shaping/rejected"], abs=1e-5) != 0
    for log in trainer.state.log_history[:-1]:
        assert log["rewards/margins"] == pytest.approx(log["rewards/dpo_margins"] + log["shaping/margin"], abs=1e-4)
        shown = log["rewards/chosen"] - log["shaping/chosen"] - log["rewards/rejected"] + log["shaping/rejected"]
        assert shown == pytest.approx(log["rewards/dpo_margins"], abs=1e-4)
        assert 0 <= log["shaping/accuracy"] <= 1 and 0 <= log["rewards/dpo_accuracies"] <= 1
        assert log["values/seconds_waited"] >= 0
