"""A world with a known true reward: prompts, behaviour that models are fine-tuned on, and preferences by that reward.

Tokens are numbers: 0 is the end of a completion (EOS), and 1 to 31 are content. A prompt is three content tokens. A
completion ends with EOS, its 14th token at the latest, and a tensor is filled with EOS behind it. There is no other
padding token: a student that is pushed away from what it sees would put probability there, and nobody samples it.
"""

import torch
from torch import Tensor

EOS, VOCABULARY = 0, 32
PROMPT, LONGEST = 3, 14


class World:
    """One world of many, drawn from its number.

    behaviour  opening by topic, then a bigram chain with a taste by topic; the length is 8.5 ± 2.5
    reward     2 if the opening's mode is right for the prompt, plus the value of each later token, which depends on
               topic and mode, less 0.5 for each repetition and 0.3 for each token away from the wanted length
    """

    def __init__(self, number: int) -> None:
        chance, n = torch.Generator().manual_seed(1000 + number), VOCABULARY - 1

        def normal(scale: float, *shape: int) -> Tensor:
            return scale * torch.randn(*shape, generator=chance)

        def whole(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=chance)

        self.number = number
        self._topic, self._side_topic = whole(0, 6, VOCABULARY), whole(0, 3, VOCABULARY)
        self._opening, self._bigram, self._taste = normal(1.0, 6, n), normal(1.2, n, n), normal(0.8, 6, n)
        self._right_mode = whole(0, 3, 6, 3)
        self._worth = normal(0.55, 6, 3, VOCABULARY)
        self._wanted_length = whole(4, 11, VOCABULARY)

    def prompts(self, count: int, chance: torch.Generator) -> Tensor:
        """Token ids, int64 [N, 3]."""
        return torch.randint(EOS + 1, VOCABULARY, (count, PROMPT), generator=chance)

    def behaviour(self, prompts: Tensor, chance: torch.Generator) -> Tensor:
        """Completions as people of this world write them, int64 [N, 14]."""
        count = len(prompts)
        completions = torch.full((count, LONGEST), EOS)
        done = torch.zeros(count, dtype=torch.bool)
        topic = self._topic[prompts[:, 0]]
        for place in range(LONGEST):
            if place == 0:
                logits = self._opening[topic]
            else:
                last = (completions[:, place - 1] - 1).clamp(min=0)
                logits = self._bigram[last] + self._taste[topic]
            token = torch.multinomial(logits.softmax(-1), 1, generator=chance)[:, 0] + 1
            stops = torch.rand(count, generator=chance) < torch.sigmoid(torch.tensor((place - 7.5) / 1.5))
            token = torch.where((stops & (place > 0)) | torch.tensor(place == LONGEST - 1), EOS, token)
            completions[:, place] = torch.where(done, EOS, token)
            done |= token == EOS
        return completions

    def reward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """The true reward of each completion, float32 [N]."""
        topic, mode = self._topic[prompts[:, 0]], completions[:, 0] % 3
        content = (completions != EOS).float()
        worth = (self._worth[topic[:, None], mode[:, None], completions] * content)[:, 1:].sum(1)
        repetitions = ((completions[:, 1:] == completions[:, :-1]).float() * content[:, 1:]).sum(1)
        right = (mode == self._right_mode[topic, self._side_topic[prompts[:, 1]]]).float()
        away = (content.sum(1) - self._wanted_length[prompts[:, 2]]).abs()
        return 2.0 * right + worth - 0.5 * repetitions - 0.3 * away

    @staticmethod
    def is_token(completions: Tensor) -> Tensor:
        """Which places of completions hold their tokens, EOS included, bool [N, 14]."""
        ends = completions == EOS
        return ends.cumsum(1) - ends.long() == 0

    def preferences(
        self, prompts: Tensor, first: Tensor, second: Tensor, chance: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Chosen and rejected completions, by a Bradley-Terry label: P(first is chosen) = σ(reward difference)."""
        difference = self.reward(prompts, first) - self.reward(prompts, second)
        chosen = (torch.rand(len(prompts), generator=chance) < torch.sigmoid(difference))[:, None]
        return torch.where(chosen, first, second), torch.where(chosen, second, first)
