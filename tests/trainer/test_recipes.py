"""The authors' recipes by name: their losses, from raw logits in float64 as their formulas read, and what they refuse.

No record, no shaping and no loss of ours: one sequence at a time, R token by token.
"""

import pytest
import torch
from peft import LoraConfig
from runs import assert_same_gradient, moved_weights
from teacher_source import TeacherSource
from transformers import AutoModelForCausalLM

from tvkd_client import TVKDConfig
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.shaping import RECIPES

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
BETA, GAMMA, LONGEST = 0.1, 0.9, 10
VALUES = {
    "tpkd-ref": lambda logits: logits.exp().sum().log(),
    "softvalue-sum": lambda logits: ((logits.exp() / logits.exp().sum()) ** 0.7).sum().log(),
}
"""What each recipe calls V of a state, from the teacher's raw logits there."""


def reward(row: dict, side: str, policy, reference, teacher, value) -> torch.Tensor:
    """R = Σ_t [β·(log π_θ − log π_ref) − (1 − γ)·V(s_{t+1})] over the tokens that are kept."""
    prompt = row["prompt_ids"]
    ids = prompt + row[side][: LONGEST - len(prompt)]
    logits = [model(input_ids=torch.tensor([ids])).logits[0] for model in (policy, reference, teacher)]
    total = torch.zeros((), dtype=torch.float64)
    for place in range(len(prompt), len(ids)):
        own, behind = (of[place - 1].log_softmax(-1)[ids[place]] for of in logits[:2])
        total = total + BETA * (own - behind.detach()) - (1 - GAMMA) * value(logits[2][place].detach())
    return total


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("recipe", VALUES)
def test_loss_and_gradient_of_a_recipe_are_its_formula(make_trainer, student, tiny_teacher, recipe, peft_config):
    source = TeacherSource(tiny_teacher, (1.0, RECIPES[recipe]["temperature"]))
    trainer = make_trainer(
        recipe=recipe, gamma=GAMMA, beta=BETA, source=source, peft_config=peft_config,
        per_device_train_batch_size=4, max_length=LONGEST,
    )  # fmt: skip
    trained = moved_weights(trainer)
    rows = [trainer.train_dataset[index] for index in range(4)]
    assert any(len(row["prompt_ids"]) + len(row["chosen_ids"]) > LONGEST for row in rows)

    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    gradient = torch.autograd.grad(loss, trained)

    reference, teacher = (
        AutoModelForCausalLM.from_pretrained(of, dtype=torch.float64) for of in (student, tiny_teacher)
    )
    models = trainer.model.double(), reference, teacher
    losses = []
    for row in rows:
        chosen, rejected = (reward(row, side, *models, VALUES[recipe]) for side in ("chosen_ids", "rejected_ids"))
        losses.append(-torch.log(1 / (1 + torch.exp(-(chosen - rejected)))))
    wanted = torch.stack(losses).mean()
    wanted_gradient = torch.autograd.grad(wanted, trained)

    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert_same_gradient(gradient, wanted_gradient)


@pytest.mark.parametrize("recipe", VALUES)
def test_a_recipe_takes_no_other_value_of_what_it_sets(tmp_path, recipe):
    def config(**settings) -> TVKDConfig:
        return TVKDConfig(str(tmp_path), use_cpu=True, bf16=False, recipe=recipe, gamma=GAMMA, **settings)

    config(**RECIPES[recipe])
    other = {"alpha": 0.5, "potential": "entropy", "temperature": 2.0, "terminal": "zero", "aggregate": "mean"}
    for name, value in other.items():
        with pytest.raises(InvalidRequest, match=rf"^{name} {value} contradicts recipe {recipe}, whose {name} is "):
            config(**{name: value})
    with pytest.raises(InvalidRequest, match="recipe belongs to objective tvkd, and objective is token"):
        config(objective="token")
    with pytest.raises(InvalidRequest, match="set gamma below 1"):
        TVKDConfig(str(tmp_path), use_cpu=True, bf16=False, recipe=recipe)
