"""Which policy the published loss chooses, and when shaping leaves DPO's choice alone: exact, for 120 completions.

    python studies/policy_invariance.py

Completions are all sequences of 1 to 4 tokens out of three, with an end behind. Every completion has a true reward r*
and a reference probability, both random, and a policy is a free number a completion. The loss is taken over all pairs
with Bradley-Terry labels, so that nothing is left to chance, and its minimum is found to 1e-6:

    L(π) = E[−log σ(β·(u_1 − u_2) + α·(S_1 − S_2))],   u = log π − log π_ref,   S = Σψ of a potential

The claim is that the minimum is at softmax(log π_ref + (r* − α·S)/β). DPO's own is at S = 0.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tvkd_shared.shaping import Terminal, shaping

BETA, ALPHA = 0.3, 0.7
TOKENS, LONGEST = 3, 4
READINGS: tuple[tuple[float, Terminal], ...] = (
    (1.0, "zero"), (1.0, "state"), (1.0, "last-decision"), (0.9, "zero"), (0.9, "state"),
)  # fmt: skip

Completion = tuple[int, ...]
COMPLETIONS: list[Completion] = [
    (*tokens, 0)
    for length in range(1, LONGEST + 1)
    for tokens in itertools.product(range(1, TOKENS + 1), repeat=length)
]


@dataclass(frozen=True)
class Problem:
    """r* and log π_ref of each completion, float64 [N], and a potential of each state, a completion's first tokens."""

    reward: Tensor
    log_reference: Tensor
    potential: dict[Completion, float]

    @classmethod
    def random(cls, seed: int = 0) -> "Problem":
        chance = np.random.default_rng(seed)
        count = len(COMPLETIONS)
        states = {completion[:length] for completion in COMPLETIONS for length in range(len(completion) + 1)}
        return cls(
            torch.from_numpy(1.5 * chance.normal(size=count)),
            torch.from_numpy(chance.normal(size=count)).log_softmax(0),
            {state: 3 + chance.normal() for state in sorted(states)},
        )

    def shaped(self, gamma: float, terminal: Terminal) -> Tensor:
        """S of each completion, float64 [N]."""
        sums = [self._sum_of_psi(completion, gamma, terminal) for completion in COMPLETIONS]
        return torch.tensor(sums, dtype=torch.float64)

    def _sum_of_psi(self, completion: Completion, gamma: float, terminal: Terminal) -> float:
        potentials = [self.potential[completion[:length]] for length in range(len(completion) + 1)]
        return float(shaping(potentials, gamma=gamma, terminal=terminal, end=len(completion)).sum())

    def optimum(self, reward: Tensor) -> Tensor:
        """log π of the policy that maximises E[reward] − β·KL(π ‖ π_ref): softmax(log π_ref + reward/β)."""
        return (self.log_reference + reward / BETA).log_softmax(0)

    def objective(self, log_policy: Tensor) -> float:
        """E[r*] − β·KL(π ‖ π_ref), what a student should have much of."""
        return float(log_policy.exp() @ (self.reward - BETA * (log_policy - self.log_reference)))

    def minimum(self, shaped: Tensor) -> Tensor:
        """log π of the policy with the least loss, found by L-BFGS."""
        free = torch.zeros(len(self.reward), dtype=torch.float64, requires_grad=True)
        preferred = torch.sigmoid(self.reward[:, None] - self.reward)
        margins = ALPHA * (shaped[:, None] - shaped)
        search = torch.optim.LBFGS(
            [free], max_iter=5000, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            search.zero_grad()
            u = BETA * (free.log_softmax(0) - self.log_reference)
            logit = u[:, None] - u + margins
            mean = -(preferred * logsigmoid(logit) + (1 - preferred) * logsigmoid(-logit)).mean()
            mean.backward()
            return mean

        search.step(loss)
        return free.detach().log_softmax(0)


def main() -> None:
    problem = Problem.random()
    dpo = problem.optimum(problem.reward)
    print("largest difference in log π between the loss's minimum and the optimum of a reward:\n")
    print(f"{'γ':>4}  {'terminal':14} {'std of S':>9} {'r*':>9} {'r* − α·S':>10}   E[r*] − β·KL")
    for gamma, terminal in READINGS:
        shaped = problem.shaped(gamma, terminal)
        found, claimed = problem.minimum(shaped), problem.optimum(problem.reward - ALPHA * shaped)
        to_dpo, to_claimed = (found - dpo).abs().max(), (found - claimed).abs().max()
        earned = problem.objective(found)
        print(f"{gamma:4}  {terminal:14} {shaped.std():9.3f} {to_dpo:9.1e} {to_claimed:10.1e}   {earned:.4f}")
    print(f"\nDPO's own optimum has E[r*] − β·KL = {problem.objective(dpo):.4f}")


if __name__ == "__main__":
    main()
