"""Short training runs that are compared to the bit."""

from typing import Any

import torch

SMALL: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Plain pairs of unequal lengths; one completion in four is a single word."""
    generator = torch.Generator().manual_seed(seed)

    def words(longest: int) -> str:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return " ".join(f"w{int(word)}" for word in torch.randint(8, 128, (length,), generator=generator))

    return [
        {"prompt": words(8), "chosen": " " + words(12), "rejected": " " + (words(12) if row % 4 else words(1))}
        for row in range(count)
    ]


def train(trainer, **settings) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Loss of each micro-batch and the final weights."""
    losses = []
    step = trainer.training_step

    def recorded(*args, **kwargs):
        loss = step(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.training_step = recorded
    trainer.train(**settings)
    return losses, {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def assert_same_run(one, other) -> None:
    (losses, weights), (other_losses, other_weights) = one, other
    assert losses and losses == other_losses
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
