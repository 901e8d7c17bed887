"""Objectives beside TRL's loss, in torch, and what is measured of them. `tvkd_shared.objective` has the definitions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import logsigmoid

from tvkd_client.collator import Scores
from tvkd_client.training_settings import Role

FEW_TOKENS = 256
"""Tokens, or spans, from which on the mean of A is taken for that of the data."""

UNLEARNS = 0.5
"""Nats a token, or span, by which a teacher may find chosen completions less likely than the student's reference."""

DISPLACED = 1.0
"""Nats a token, or span, by which a teacher's DPO may have lowered the log-prob of all completions, on average."""


@dataclass(slots=True)
class Batch:
    """A batch's log-ratios and advantages, each float [2B, L − 1], 0 outside the mask `kept`.

    The mask is that of the completions' tokens. Where the teacher has a tokenizer of its own, it is that of each span's
    last token, and the numbers are sums over spans. `delta` is Δ of each pair, [B], over all kept tokens.
    """

    kept: torch.Tensor
    log_ratio: torch.Tensor
    advantage: torch.Tensor
    delta: torch.Tensor

    @classmethod
    def of(
        cls,
        policy_NL: torch.Tensor,
        reference_NL: torch.Tensor,
        kept_NL: torch.Tensor,
        scores: Scores,
        *,
        base: Role | None,
        spans_NL: torch.Tensor | None,
    ) -> "Batch":
        """From log-probs of the student and its reference, [2B, L − 1], and from what the roles say.

        A is taken against the reference where `base` is None. `spans_NL` is None where spans are tokens.
        """
        teacher_NL = torch.from_numpy(scores.log_probs["teacher"]).to(policy_NL)
        base_NL = torch.from_numpy(scores.log_probs[base]).to(policy_NL) if base else reference_NL
        kept_NL = kept_NL.to(policy_NL)
        log_ratio_NL = (policy_NL - reference_NL) * kept_NL
        delta = margin(log_ratio_NL)
        if spans_NL is not None:
            if base != "teacher_reference":
                base_NL = span_sums(base_NL, spans_NL)
            log_ratio_NL = span_sums(log_ratio_NL, spans_NL)
            kept_NL = span_ends(spans_NL).to(policy_NL)
        return cls(kept_NL, log_ratio_NL, (teacher_NL - base_NL) * kept_NL, delta)


def margin(grid_NL: torch.Tensor) -> torch.Tensor:
    """Sum over the chosen completion less that over the rejected one, of each pair, [B]."""
    chosen, rejected = grid_NL.sum(1).chunk(2)
    return chosen - rejected


def span_sums(grid_NL: torch.Tensor, spans_NL: torch.Tensor) -> torch.Tensor:
    """Sums of tokens' numbers over spans, each in the place of the span's last token, [2B, L − 1], 0 elsewhere."""
    width = grid_NL.size(1)
    sums = grid_NL.new_zeros(len(grid_NL), width + 1)
    return sums.scatter_add(1, spans_NL, grid_NL)[:, :width]


def span_ends(spans_NL: torch.Tensor) -> torch.Tensor:
    """Where a token is the last of its span, bool [2B, L − 1]."""
    return spans_NL == torch.arange(spans_NL.size(1), device=spans_NL.device)


def token_error(batch: Batch, strength: float, center: float) -> torch.Tensor:
    """(lr_t − k·(A_t − c))² of each token or span, [2B, L − 1], 0 outside the completions."""
    return (batch.log_ratio - strength * (batch.advantage - center)).square() * batch.kept


def soft_label_term(batch: Batch, beta: float, strength: float) -> torch.Tensor:
    """What soft labels add to DPO's loss: the mean over pairs of (1 − p)·βΔ.

    −p·log σ(z) − (1 − p)·log σ(−z) = −log σ(z) + (1 − p)·z, because log σ(−z) = log σ(z) − z.
    """
    p = torch.sigmoid(strength * margin(batch.advantage))
    return ((1 - p) * beta * batch.delta).mean()


def pair_metrics(dpo_B2: torch.Tensor, reward_B2: npt.NDArray[np.float64] | None) -> dict[str, torch.Tensor]:
    """What is logged of each pair, [B]: DPO's own margin, accuracy and loss, and α·S where there is shaping."""
    columns = {
        "rewards/dpo_margins": dpo_B2[:, 0] - dpo_B2[:, 1],
        "rewards/dpo_accuracies": dpo_B2[:, 0] > dpo_B2[:, 1],
        "dpo_loss": -logsigmoid(dpo_B2[:, 0] - dpo_B2[:, 1]),
    }
    if reward_B2 is None:
        return columns
    reward = torch.from_numpy(reward_B2).to(dpo_B2)
    return columns | {
        "shaping/chosen": reward[:, 0],
        "shaping/rejected": reward[:, 1],
        "shaping/margin": reward[:, 0] - reward[:, 1],
        "shaping/accuracy": reward[:, 0] > reward[:, 1],
    }


SUMS = ("tokens", "A", "A²", "target", "target²", "error", "k3", "chosen", "A of chosen")


def sums_of(batch: Batch, strength: float, center: float) -> torch.Tensor:
    """The sums that the metrics are made of, float [9] in the order of `SUMS`, over the batch's tokens, or spans."""
    kept, lr, A = (grid.detach().float() for grid in (batch.kept, batch.log_ratio, batch.advantage))
    target = strength * (A - center) * kept
    chosen = kept.clone()
    chosen[len(kept) // 2 :] = 0
    k3 = (torch.exp(-lr) - 1 + lr) * kept
    parts = (kept, A, A**2, target, target**2, (lr - target) ** 2, k3, chosen, A * chosen)
    return torch.stack([part.sum() for part in parts])


def metrics_of(sums: torch.Tensor) -> dict[str, float]:
    """What is logged of an objective's batch, from the sums over all processes.

    token/error       mean (lr_t − k·(A_t − c))²
    token/explained   share of the variance of k·A_t that lr_t explains: 1 when the student has learned it, 0 or less
                      when it knows no more than a constant
    token/kl          mean of exp(−lr_t) − 1 + lr_t: an estimate of KL(π_θ ‖ π_ref) a token, exact only on the student's
                      own samples (Schulman's k3)
    advantage/mean    mean of A_t, and advantage/std its standard deviation, in nats
    """
    s = dict(zip(SUMS, sums.tolist(), strict=True))
    n = max(s["tokens"], 1.0)
    mean = s["A"] / n
    spread = s["target²"] - s["target"] ** 2 / n
    return {
        "token/error": s["error"] / n,
        "token/explained": 1 - s["error"] / spread if spread > 0 else 0.0,
        "token/kl": s["k3"] / n,
        "advantage/mean": mean,
        "advantage/std": max(s["A²"] / n - mean**2, 0.0) ** 0.5,
    }


def warning_of(sums: torch.Tensor, *, one_teacher: bool, center: bool, unit: str) -> str | None:
    """What objective token would teach beside preferences, from the sums over FEW_TOKENS or more; None if nothing.

    `one_teacher` says that A is taken against the student's reference, for want of the teacher's. `unit` is
    token or span.
    """
    s = dict(zip(SUMS, sums.tolist(), strict=True))
    mean, mean_of_chosen = s["A"] / s["tokens"], s["A of chosen"] / max(s["chosen"], 1.0)
    if one_teacher and mean_of_chosen < -UNLEARNS:
        return (
            f"the teacher's cross-entropy on chosen completions is {-mean_of_chosen:.2f} nats a {unit} above that of "
            "the student's reference, so the student will unlearn its fine-tuning. Set teacher_reference to the model "
            "that the teacher's DPO started from, or take a teacher that was fine-tuned on the same data"
        )
    if mean < -DISPLACED and not center:
        return (
            f"the advantage's mean is {mean:.2f} nats a {unit}: the teacher's DPO made all completions less likely, "
            "and the student will learn that too. Set center: true, or train the teacher more mildly"
        )
    return None
