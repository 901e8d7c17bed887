"""The published loss, by the other route to it: TRL's DPOTrainer, given a reference that the teacher has shifted."""

import numpy as np
import pytest
import torch
from objectives_by_hand import SIDES, logits_of, potential, shaping_of
from peft import LoraConfig
from runs import assert_same_run, train
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from tvkd_client.collator import SCORES, Scores

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
ALPHA, BETA, LONGEST = 0.75, 0.125, 10  # sums of these eighths and of γ's are exact in float64, whatever their order


@pytest.mark.parametrize(
    ("reading", "peft_config"),
    [({}, LORA), ({"gamma": 0.875, "temperature": 2.0, "terminal": "zero"}, None)],
    ids=["lora", "discounted"],
)
def test_tvkd_is_trl_s_dpo_of_a_shifted_reference_to_the_bit(make_trainer, source, tiny_teacher, reading, peft_config):
    """log π_ref' = log π_ref ∓ (α / 2β)·[S(chosen) − S(rejected)]; V has the float32 bits that a store keeps."""
    both = {"beta": BETA, "max_length": LONGEST, "peft_config": peft_config, "train_sampling_strategy": "sequential"}
    shaped = train(make_trainer(alpha=ALPHA, **reading, **both, source=source))

    teacher = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    dpo = make_trainer(trainer=DPOTrainer, config=DPOConfig, precompute_ref_log_probs=True, **both)

    @torch.no_grad()
    def shifted(row: dict) -> dict:
        prompt, S = row["prompt_ids"], {}
        for side in SIDES:
            whole = row[f"{side}_ids"]
            kept = whole[: LONGEST - len(prompt)]
            V = potential(reading, logits_of(teacher, prompt, whole).double(), torch.zeros(0)).float().double()
            S[side] = shaping_of(reading, V[: len(kept) + 1], len(kept) if kept == whole else None)
        shift = np.float32(ALPHA / (2 * BETA) * float(S["chosen"] - S["rejected"]))
        return {
            f"ref_{side}_logps": np.float32(row[f"ref_{side}_logps"]) + sign * shift
            for side, sign in zip(SIDES, (-1, 1), strict=True)
        }

    dpo.train_dataset = dpo.train_dataset.map(shifted)
    assert_same_run(shaped, train(dpo))


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
