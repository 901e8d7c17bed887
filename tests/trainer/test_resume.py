"""A checkpoint goes on where it stopped, and says what it is."""

import pytest
import torch
from peft import LoraConfig
from runs import assert_same_run, train

from tvkd_client import TVKDConfig

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "tvkd", "alpha": 0.7, "gamma": 0.9},
        {"objective": "token", "center": True, "dpo_weight": 0.5},
        {"objective": "soft-label"},
    ],
    ids=lambda objective: objective["objective"],
)
def test_a_resumed_run_ends_where_the_whole_run_ends(make_trainer, roles, tmp_path, objective, peft_config):
    settings = {"sources": roles, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "peft_config": peft_config}
    losses, weights = train(make_trainer(**objective, **settings))
    rest, resumed = train(
        make_trainer(**objective, **settings, output_dir=tmp_path / "again"),
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"),
    )
    assert_same_run((losses[2:], weights), (rest, resumed))


def test_a_checkpoint_keeps_its_settings_and_its_card(make_trainer, source, tmp_path):
    train(make_trainer(alpha=-0.3, terminal="zero", source=source, save_strategy="steps", save_steps=3))
    checkpoint = tmp_path / "out" / "checkpoint-3"
    kept = torch.load(checkpoint / "training_args.bin", weights_only=False)
    assert isinstance(kept, TVKDConfig)
    assert (kept.alpha, kept.terminal) == (-0.3, "zero")
    card = (checkpoint.parent / "README.md").read_text()
    assert "2509.16965" in card and "- tvkd" in card
