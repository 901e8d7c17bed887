"""Potential-based shaping of a completion, from the teacher's values. NumPy float64.

    ψ_t = γ · Φ(s_{t+1}) − Φ(s_t)      t = 0 … T−1

Source: Ng, Harada & Russell 1999; with Φ = V, TVKD (arXiv 2509.16965). With γ = 1 the sum telescopes to
Φ(s_T) − Φ(s_0), and Φ(s_0) cancels between the two completions of a prompt: only the last state counts. With γ < 1 it
grows with the length of the completion. What Φ(s_T) means is therefore a choice, and `terminal` makes it.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from tvkd_shared.value import Float64

Potential = Literal["soft-value", "renyi", "entropy"]
Terminal = Literal["state", "zero", "last-decision"]
Aggregate = Literal["sum", "mean"]


def potential(
    kind: Potential,
    *,
    values_S: npt.ArrayLike | None = None,
    values_1_S: npt.ArrayLike | None = None,
    entropies_S: npt.ArrayLike | None = None,
) -> Float64:
    """Φ of each state, shape (S,) = (T + 1,).

    "soft-value"  Φ = V_τ             needs values_S, V_τ
    "renyi"       Φ = V_τ − V_1       needs values_S and values_1_S: V_τ of the normalised log-probs
    "entropy"     Φ = H(π_1)          needs entropies_S

    Raises ValueError for another kind, or when what the kind needs is missing.
    """
    if kind == "soft-value" and values_S is not None:
        return np.array(values_S, np.float64)
    if kind == "renyi" and values_S is not None and values_1_S is not None:
        return np.asarray(values_S, np.float64) - np.asarray(values_1_S, np.float64)
    if kind == "entropy" and entropies_S is not None:
        return np.array(entropies_S, np.float64)
    if kind not in get_args(Potential):
        raise ValueError(f"potential {kind!r} is unknown; known: {', '.join(get_args(Potential))}")
    raise ValueError(f"potential {kind!r} was asked for without the values it is made from")


def shaping(potentials_S: npt.ArrayLike, *, gamma: float, terminal: Terminal, end: int | None = None) -> Float64:
    """ψ_t = γ·Φ(s_{t+1}) − Φ(s_t) of each token, shape (T,), from Φ of each state, shape (T + 1,).

    `end` is the number of tokens up to and including the end-of-sequence token, None for a completion that was cut
    before it. `terminal` says what Φ(s_T) is:

    "state"          the teacher's potential after the last token, also after EOS (the formula read literally)
    "zero"           0 in every state from s_end on, the absorbing states of Ng et al.; a cut completion keeps its own
    "last-decision"  Φ(s_{T−1}), the state in which the last token was chosen

    Raises ValueError when there is no token, when `end` lies outside 1 … T, or for another `terminal`.
    """
    phi = np.array(potentials_S, np.float64)
    if phi.ndim != 1 or len(phi) < 2:
        raise ValueError(f"potentials have shape {phi.shape}; a completion of T ≥ 1 tokens has T + 1 states")
    if end is not None and not 1 <= end < len(phi):
        raise ValueError(f"end {end} is outside 1 … {len(phi) - 1}, the tokens of the completion")
    if terminal == "zero":
        if end is not None:
            phi[end:] = 0.0
    elif terminal == "last-decision":
        phi[-1] = phi[-2]
    elif terminal != "state":
        raise ValueError(f"terminal {terminal!r} is unknown; known: {', '.join(get_args(Terminal))}")
    return np.asarray(gamma * phi[1:] - phi[:-1])


def aggregate(psi_T: npt.ArrayLike, how: Aggregate) -> float:
    """Σψ ("sum", the paper's) or Σψ / T ("mean", without the length term). Raises ValueError for another `how`."""
    psi = np.asarray(psi_T, np.float64)
    if how == "sum":
        return float(psi.sum())
    if how == "mean":
        return float(psi.mean())
    raise ValueError(f"aggregate {how!r} is unknown; known: {', '.join(get_args(Aggregate))}")


def tvkd_loss(
    beta: float,
    log_ratio_margin: npt.ArrayLike,
    alpha: float,
    shaping_margin: npt.ArrayLike,
) -> Float64:
    """L = −log σ(β·[Δ log π_θ/π_ref] + α·[Σψ(chosen) − Σψ(rejected)]) of each pair. α = 0 is DPO."""
    logit = beta * np.asarray(log_ratio_margin, np.float64) + alpha * np.asarray(shaping_margin, np.float64)
    return np.asarray(np.logaddexp(0.0, -logit))
