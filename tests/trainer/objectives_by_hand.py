"""The objectives as their definitions read, in float64, from raw logits of all four models.

No store, no trainer and no formula of ours: one sequence at a time, no padding.
"""

import functools

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

BETA = 0.1
SIDES = ("chosen", "rejected")


@functools.cache
def _double(directory) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)


def models_of(policy, roles: dict) -> dict:
    """The policy, which becomes float64, and the models of the roles' folders; A's base is None without T0."""
    reference, teacher, base = (
        roles.get(role) and _double(roles[role].directory) for role in ("reference", "teacher", "teacher_reference")
    )
    return {"policy": policy.double(), "reference": reference, "teacher": teacher, "base": base}


def logits_of(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The raw logits of each state, [T + 1, V]."""
    return model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 :]


def log_probs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    return logits_of(model, prompt, completion)[:-1].log_softmax(-1)[range(len(completion)), completion]


def potential(settings: dict, logits_SV: torch.Tensor, advantages_N: torch.Tensor) -> torch.Tensor:
    """Φ of each state; of potential implicit from A of each token, or span."""
    tau, value_1 = settings.get("temperature", 1.0), logits_SV.logsumexp(-1)
    value = tau * (logits_SV / tau).logsumexp(-1)
    return {
        "soft-value": value,
        "renyi": value - value_1,
        "entropy": value_1 - (logits_SV.softmax(-1) * logits_SV).sum(-1),
        "implicit": torch.cat([torch.zeros(1), advantages_N.cumsum(0)]),
    }[settings.get("potential", "soft-value")]


def shaping_of(settings: dict, phi_S: torch.Tensor, end: int | None) -> torch.Tensor:
    """S. `end` counts the tokens, or spans, up to the end of the turn; None where that was cut off."""
    phi, gamma = phi_S.clone(), settings.get("gamma", 1.0)
    if settings.get("terminal") == "zero" and end is not None:
        phi[end:] = 0
    if settings.get("terminal") == "last-decision":
        phi[-1] = phi[-2]
    psi = (gamma - 1) * phi[1:] if settings.get("form") == "tpkd-ref" else gamma * phi[1:] - phi[:-1]
    return psi.mean() if settings.get("aggregate") == "mean" else psi.sum()


class ByHand:
    """lr, A, the part in Δ and S of a completion, of which `longest` tokens are kept together with its prompt."""

    def __init__(self, row, side, *, policy, reference, teacher, base, settings, longest) -> None:
        prompt, whole = row["prompt_ids"], row[f"{side}_ids"]
        ids = whole[: longest - len(prompt)]
        self.is_cut = len(ids) < len(whole)
        with torch.no_grad():
            behind = log_probs(reference, prompt, ids)
            self.A = log_probs(teacher, prompt, ids) - (behind if base is None else log_probs(base, prompt, ids))
            phi = potential(settings, logits_of(teacher, prompt, ids), self.A)
        self.lr = log_probs(policy, prompt, ids) - behind
        self.delta = self.lr.sum()
        self.S = shaping_of(settings, phi, None if self.is_cut else len(ids))  # plain text ends in EOS


def pairs_by_hand(rows: list[dict], policy, roles: dict, settings: dict, longest: int) -> list[list[ByHand]]:
    models = models_of(policy, roles)
    return [[ByHand(row, side, **models, settings=settings, longest=longest) for side in SIDES] for row in rows]


def center_of(settings: dict, data: list[list]) -> torch.Tensor | float:
    return torch.cat([one.A for pair in data for one in pair]).mean() if settings.get("center") else 0.0


def loss_by_hand(settings: dict, pairs: list[list], data: list[list]) -> torch.Tensor:
    """The loss of a batch of pairs; A's mean is taken over `data`."""
    k, c = settings.get("strength", 1.0), center_of(settings, data)
    delta = torch.stack([chosen.delta - rejected.delta for chosen, rejected in pairs])
    if settings["objective"] == "tvkd":
        S = torch.stack([chosen.S - rejected.S for chosen, rejected in pairs])
        return -logsigmoid(BETA * delta + settings["alpha"] * S).mean()
    if settings["objective"] == "soft-label":
        p = torch.sigmoid(k * torch.stack([chosen.A.sum() - rejected.A.sum() for chosen, rejected in pairs]))
        return (-p * logsigmoid(BETA * delta) - (1 - p) * logsigmoid(-BETA * delta)).mean()
    errors = [(one.lr - k * (one.A - c)) ** 2 for pair in pairs for one in pair]
    return torch.cat(errors).mean() - settings.get("dpo_weight", 0.0) * logsigmoid(BETA * delta).mean()


@torch.no_grad()
def metrics_by_hand(settings: dict, pairs: list[list], data: list[list]) -> dict[str, float]:
    """What is logged of a batch of pairs, as docs/training.md reads."""
    delta = BETA * torch.stack([chosen.delta - rejected.delta for chosen, rejected in pairs])
    lr, A = (torch.cat([getattr(one, name) for pair in pairs for one in pair]) for name in ("lr", "A"))
    target = settings.get("strength", 1.0) * (A - center_of(settings, data))
    error = ((lr - target) ** 2).mean()
    found = {
        "loss": loss_by_hand(settings, pairs, data),
        "dpo_loss": -logsigmoid(delta).mean(),
        "rewards/dpo_margins": delta.mean(),
        "rewards/dpo_accuracies": (delta > 0).double().mean(),
        "token/error": error,
        "token/explained": 1 - error / target.var(correction=0),
        "token/kl": (torch.exp(-lr) - 1 + lr).mean(),
        "advantage/mean": A.mean(),
        "advantage/std": A.std(correction=0),
    }
    return {
        name: float(number)
        for name, number in found.items()
        if settings["objective"] != "tvkd" or not name.startswith(("token/", "advantage/"))
    }
