"""α = 0 is TRL's DPOTrainer to the bit, and asks nobody for values."""

import pytest
from peft import LoraConfig
from runs import assert_same_run, train
from trl import DPOConfig, DPOTrainer

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize(
    ("settings", "peft_config"),
    [
        ({}, None),
        ({}, LORA),
        ({"gradient_accumulation_steps": 2}, None),
        ({"precompute_ref_log_probs": True}, None),
        ({"gradient_checkpointing": True}, None),
        ({"gradient_checkpointing": True, "precompute_ref_log_probs": True}, LORA),
        ({"bf16": True}, None),
        ({"loss_type": ["sigmoid", "sft"]}, None),
    ],
    ids=["full", "lora", "accumulation", "precomputed", "checkpointing", "lora-all", "bf16", "sft"],
)
def test_alpha_zero_equals_dpo_to_the_bit(make_trainer, settings, peft_config):
    dpo = train(make_trainer(trainer=DPOTrainer, config=DPOConfig, peft_config=peft_config, **settings))
    tvkd = train(make_trainer(alpha=0.0, peft_config=peft_config, **settings))
    assert_same_run(dpo, tvkd)


def test_alpha_zero_asks_for_no_values(make_trainer, source):
    train(make_trainer(alpha=0.0, source=source))
    assert source.asked == 0


def test_another_alpha_is_another_run(make_trainer, source):
    losses, _ = train(make_trainer(alpha=0.0))
    shaped, _ = train(make_trainer(alpha=0.7, source=source))
    assert losses != shaped
