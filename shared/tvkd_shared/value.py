"""The teacher's values: the reference that every engine and every path is tested against.

Notation. A completion y_0 … y_{T-1} follows a prompt x; state s_t = (x, y_<t), t = 0 … T; l(s) are the teacher's raw
next-token logits in state s, after the model's own logit scale and soft cap. Raw, because normalised log-probs have
lost the value: their logsumexp is 0 in every state.

Everything here is NumPy float64, last axis = vocabulary.
"""

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def value(logits_SV: npt.ArrayLike, temperature: float = 1.0) -> Float64:
    """V_τ(s) = τ · logsumexp(l(s) / τ): soft value of each state, shape (S,), in logits.

    Source: Rafailov et al. 2024, "From r to Q*", eq. 7 (token-level MDP, logits read as Q).
    Raises ValueError when the temperature is not positive and finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature {temperature} is not a positive finite number")
    logits = np.asarray(logits_SV, np.float64)
    top = logits.max(-1)
    exponentials = np.exp((logits - top[..., None]) / temperature)
    return np.asarray(top + temperature * np.log(exponentials.sum(-1)))


def log_prob(action_logits_T: npt.ArrayLike, values_T: npt.ArrayLike) -> Float64:
    """log π(y_t | s_t) = q_t − V_1(s_t), with q_t = l(s_t)[y_t], shape (T,), in nats."""
    return np.asarray(action_logits_T, np.float64) - np.asarray(values_T, np.float64)


def entropy(logits_SV: npt.ArrayLike) -> Float64:
    """H(π_1(·|s)) = −Σ_a π_1(a|s) log π_1(a|s), shape (S,), in nats. It is dV_τ/dτ at τ = 1."""
    logits = np.asarray(logits_SV, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(-1)
    return np.asarray(np.log(total) - (exponentials * shifted).sum(-1) / total)
