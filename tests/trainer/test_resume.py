"""A checkpoint goes on where it stopped, and says what it is."""

import torch
from runs import train

from tvkd_client import TVKDConfig


def test_a_resumed_run_ends_where_the_whole_run_ends(make_trainer, source, tmp_path):
    settings = {"alpha": 0.7, "gamma": 0.9, "source": source, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    losses, weights = train(make_trainer(**settings))
    rest, resumed = train(
        make_trainer(**settings, output_dir=tmp_path / "again"),
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"),
    )
    assert rest == losses[2:]
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_checkpoint_keeps_its_settings_and_its_card(make_trainer, source, tmp_path):
    train(make_trainer(alpha=-0.3, terminal="zero", source=source, save_strategy="steps", save_steps=3))
    checkpoint = tmp_path / "out" / "checkpoint-3"
    kept = torch.load(checkpoint / "training_args.bin", weights_only=False)
    assert isinstance(kept, TVKDConfig)
    assert (kept.alpha, kept.terminal) == (-0.3, "zero")
    card = (checkpoint.parent / "README.md").read_text()
    assert "2509.16965" in card and "- tvkd" in card
