"""Short training runs, and what is compared of them."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaForCausalLM

from tvkd_client import TVKDConfig, TVKDTrainer

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


def trainer_of(student, output, data, *, sources=None, trainer=TVKDTrainer, config=TVKDConfig, **settings):
    """A trainer; settings by name, those of SMALL by default."""
    extra = {"sources": sources} if issubclass(trainer, TVKDTrainer) else {}
    extra |= {name: settings.pop(name) for name in ("eval_dataset", "peft_config") if name in settings}
    return trainer(str(student), args=config(str(output), **{**SMALL, **settings}), train_dataset=data, **extra)


def moved_model(directory, saved):
    """The Llama of a folder with other weights near its own, saved in another."""
    model = LlamaForCausalLM.from_pretrained(directory)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(saved)
    return saved


def moved_weights(trainer) -> list[torch.nn.Parameter]:
    """The weights that are trained, a little away from the reference's, so that no term of a loss is 0."""
    torch.manual_seed(3)
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data.add_(0.02 * torch.randn_like(weight))
    return weights


def assert_same_gradient(gradient: Sequence[torch.Tensor | None], wanted: Sequence[torch.Tensor | None]) -> None:
    """Within 1e-4 of the wanted gradient's norm, which is not 0."""
    flat, wanted_flat = (
        torch.cat([part.double().flatten() for part in parts if part is not None]) for parts in (gradient, wanted)
    )
    assert torch.linalg.norm(flat - wanted_flat) < 1e-4 * torch.linalg.norm(wanted_flat)
    assert torch.linalg.norm(wanted_flat) > 0


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
