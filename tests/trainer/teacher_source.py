"""A value source in this process: a real model's full logits through the reference maths, no server and no store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tvkd_shared.record import Record
from tvkd_shared.value import entropy, value


class TeacherSource:
    def __init__(
        self, directory: Path, temperatures: Sequence[float] = (1.0,), teacher_id: str = "the-tiny-teacher"
    ) -> None:
        self.directory = directory
        self.teacher_id = teacher_id
        self.temperatures = temperatures
        self.asked = 0
        self._kept: dict[tuple[tuple[int, ...], tuple[int, ...]], Record] = {}
        self._load()

    def _load(self) -> None:
        # Not at the first fetch, which is in a thread: transformers patches its classes while it loads, and two loads
        # at once leave them patched, and the weights of every later model untied.
        self._model: Any = AutoModelForCausalLM.from_pretrained(self.directory)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def fetch(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> list[Record]:
        self.asked += len(prompts)
        return [
            self._first(tuple(prompt), tuple(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def _first(self, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Record:
        """The first answer stays the answer, as a store's does: another thread count changes the last bit."""
        if (prompt, completion) not in self._kept:
            self._kept[prompt, completion] = self._scored(prompt, completion)
        return self._kept[prompt, completion]

    @torch.no_grad()
    def _scored(self, prompt: Sequence[int], completion: Sequence[int]) -> Record:
        logits = self._model(torch.tensor([[*prompt, *completion]])).logits[0]
        logits_SV = logits[len(prompt) - 1 :].numpy()
        return Record.of(
            {tau: value(logits_SV, tau).astype(np.float32) for tau in self.temperatures},
            logits_SV[np.arange(len(completion)), completion],
            entropy(logits_SV).astype(np.float32),
        )
