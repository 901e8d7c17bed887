"""Objectives of a student, as NumPy float64: the reference that the trainer is tested against.

With lr_t = log π_θ(y_t|s_t) − log π_ref(y_t|s_t) of the student π_θ and its reference π_ref, and the teacher's
advantage A_t (`tvkd_shared.shaping.advantage`):

    tvkd        −log σ(β·Δ + α·[S(chosen) − S(rejected)])                   Δ = Σlr(chosen) − Σlr(rejected)
    token       mean over the tokens of both completions of (lr_t − k·(A_t − c))²  + λ·L_DPO
    soft-label  −p·log σ(βΔ) − (1 − p)·log σ(−βΔ)                           p = σ(k·[ΣA(chosen) − ΣA(rejected)])

`tvkd` is the published loss (arXiv 2509.16965), and α = 0 is DPO. `token` is the regression of the student's implicit
reward of each token onto the teacher's; `soft-label` is DPO with the teacher's probability in place of the label.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from tvkd_shared.value import Float64

Objective = Literal["tvkd", "token", "soft-label"]


def tvkd_loss(
    beta: float,
    log_ratio_margin: npt.ArrayLike,
    alpha: float,
    shaping_margin: npt.ArrayLike,
) -> Float64:
    """L = −log σ(β·[Δ log π_θ/π_ref] + α·[Σψ(chosen) − Σψ(rejected)]) of each pair. α = 0 is DPO."""
    logit = beta * np.asarray(log_ratio_margin, np.float64) + alpha * np.asarray(shaping_margin, np.float64)
    return np.asarray(np.logaddexp(0.0, -logit))


def starting_weight(alpha: float, shaping_margin: npt.ArrayLike) -> Float64:
    """σ(−α·m): what a pair's gradient is weighed with before the first step, when Δ is 0. Under DPO it is ½."""
    with np.errstate(over="ignore"):
        logit = alpha * np.asarray(shaping_margin, np.float64)
    return np.asarray(1 / (1 + np.exp(np.clip(logit, -500, 500))))


def token_loss(
    log_ratios: Sequence[npt.ArrayLike], advantages: Sequence[npt.ArrayLike], strength: float, center: float = 0.0
) -> float:
    """Mean over all tokens of (lr_t − k·(A_t − c))², in nats², from lr and A of each completion, [T] each."""
    lr, A = (np.concatenate([np.asarray(row, np.float64) for row in rows]) for rows in (log_ratios, advantages))
    return float(np.mean((lr - strength * (A - center)) ** 2))


def soft_label_loss(
    beta: float, log_ratio_margin: npt.ArrayLike, strength: float, advantage_margin: npt.ArrayLike
) -> Float64:
    """−p·log σ(βΔ) − (1 − p)·log σ(−βΔ) of each pair, p = σ(k·[ΣA(chosen) − ΣA(rejected)])."""
    logit = beta * np.asarray(log_ratio_margin, np.float64)
    p = 1 / (1 + np.exp(-strength * np.asarray(advantage_margin, np.float64)))
    return np.asarray(p * np.logaddexp(0.0, -logit) + (1 - p) * np.logaddexp(0.0, logit))
