"""One blocking pass over some questions: backbone, head, records. Used from one thread at a time."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvkd_server.teachers.backbone import Backbone, Question, Row
from tvkd_server.teachers.head import Head, reduce
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable
from tvkd_shared.record import Float32, Record

logger = logging.getLogger(__name__)

Answer = list[Record] | TeacherUnavailable
"""The records of one question's completions, or why there are none."""


class TeacherPass:
    """A causal LM of transformers, asked for values only.

    Raises InvalidRequest when the model's logits are not its LM head over its backbone's states, or when a token
    changes the states before it: such a model has no V(s_t) that this pass could compute.
    """

    def __init__(self, model: Any, *, longest: int, max_batch_tokens: int, head_chunk: int) -> None:
        if model.base_model is model:
            raise InvalidRequest(f"{type(model).__name__} has no backbone apart from its LM head")
        self._max_batch_tokens = max_batch_tokens
        with torch.inference_mode():
            self._backbone = Backbone(model, longest)
            probe_1L = torch.arange(min(8, longest))[None] * 7919 % model.config.get_text_config().vocab_size
            output = self._backbone.read(probe_1L, use_cache=False)
            self._head = Head(model, type(output), head_chunk)
            self._verify(model, probe_1L, output.last_hidden_state)

    @property
    def shares_prompts(self) -> bool:
        return self._backbone.shares_prompts

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each question. Out of memory, the questions are halved, and at last one question's rows."""
        return self._score_within(questions, self._max_batch_tokens)

    def _score_within(self, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        try:
            return self._score(questions, max_tokens)
        except torch.OutOfMemoryError:
            pass  # halved below, where the failed pass's tensors are no longer held by the error's traceback
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(questions) > 1:
            middle = len(questions) // 2
            halves = questions[:middle], questions[middle:]
            return [answer for half in halves for answer in self._score_within(half, max_tokens)]
        prompt, completion = len(questions[0].prompt), max(map(len, questions[0].completions))
        padded = min(max_tokens, len(questions[0].completions) * (prompt + completion))
        if padded <= prompt + completion:
            refusal = TeacherUnavailable(
                f"the device's memory does not hold a prompt of {prompt} and a completion of {completion} tokens; "
                "lower head_chunk, or give the teacher a larger device"
            )
            return [refusal]
        return self._score_within(questions, padded // 2)

    def _score(self, questions: Sequence[Question], max_tokens: int) -> list[Answer]:
        temperatures = sorted({temperature for question in questions for temperature in question.temperatures})
        blocks: dict[Row, Float32] = {}
        for states in self._backbone.states(questions, max_tokens):
            table_SK = self._head.reduce(states.hidden, states.actions, temperatures).numpy()
            lengths = [len(questions[number].completions[index]) + 1 for number, index in states.rows]
            blocks.update(zip(states.rows, np.split(table_SK, np.cumsum(lengths)[:-1]), strict=True))
        return [
            _answer(question, [blocks[number, index] for index in range(len(question.completions))], temperatures)
            for number, question in enumerate(questions)
        ]

    def _verify(self, model: Any, probe_1L: Tensor, hidden_1LD: Tensor) -> None:
        """Hold the pass against the model's own forward on a few tokens, so that no architecture is taken on trust."""
        logits_LV = model(input_ids=probe_1L.to(model.device)).logits[0].float()
        probe_L = probe_1L[0].to(model.device)
        # Wide: noise of the dtype passes, a wrong scale, position or mask does not.
        tolerance = float(logits_LV.abs().max()) * (1e-3 if model.dtype == torch.float32 else 5e-2)

        own_LV = self._head.logits(hidden_1LD[0]).float()
        if not torch.allclose(own_LV, logits_LV[:, : own_LV.shape[1]], rtol=0, atol=tolerance):
            raise InvalidRequest(f"{type(model).__name__} makes its logits from more than its backbone's last states")
        changed_1L = probe_1L.clone()
        changed_1L[:, -1] = probe_1L[:, 0]
        changed_1LD = self._backbone.read(changed_1L, use_cache=False).last_hidden_state
        scale = float(hidden_1LD.abs().max()) * (1e-3 if model.dtype == torch.float32 else 5e-2)
        if not torch.allclose(changed_1LD[:, :-1], hidden_1LD[:, :-1], rtol=0, atol=scale):
            raise InvalidRequest(f"{type(model).__name__} is not causal: a token changes the states before it")

        if self._backbone.shares_prompts:
            ids = probe_L.tolist()
            questions = [Question(ids[:split], [ids[split:]], (1.0,)) for split in (1, len(ids) // 2)]
            expected_L = reduce(logits_LV[:, : own_LV.shape[1]], probe_L, [1.0])[:, 0].cpu()
            answers = self._score(questions, self._max_batch_tokens)
            if not all(_near(answer, expected_L.numpy(), tolerance) for answer in answers):
                logger.warning("%s: its cache cannot be shared; prompts are read again", type(model).__name__)
                self._backbone.shares_prompts = False


def _answer(question: Question, blocks: Sequence[Float32], temperatures: Sequence[float]) -> Answer:
    """Records from each completion's columns V_τ …, H, q, shape (T + 1, K + 2)."""
    try:
        return [
            Record.of(
                values={tau: block_SK[:, temperatures.index(tau)].copy() for tau in question.temperatures},
                action_logits=block_SK[:-1, -1].copy(),
                entropies=block_SK[:, -2].copy(),
            )
            for block_SK in blocks
        ]
    except ValueError as error:  # float16 overflows in many models
        return TeacherUnavailable(f"the teacher's {error}; serve it in bfloat16 or float32")


def _near(answer: Answer, expected_L: Float32, tolerance: float) -> bool:
    """Whether the only completion's values are the last ones of those expected."""
    if isinstance(answer, TeacherUnavailable):
        return False
    values_S = answer[0].values[1.0]
    return bool(np.allclose(values_S, expected_L[-len(values_S) :], rtol=0, atol=tolerance))
