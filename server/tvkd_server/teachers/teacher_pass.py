"""One blocking pass over some questions: backbone, then head. It is used from one thread at a time."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.backbone import Backbone, Row
from tvkd_server.teachers.head import Head, reduce
from tvkd_server.teachers.teacher import Question
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable
from tvkd_shared.record import VALUE, Float32

logger = logging.getLogger(__name__)

Answer = list[Float32] | TeacherUnavailable
"""The numbers [T + 1, K] of each completion of a question, or why there are none."""


class TeacherPass:
    """A causal LM of transformers, and the check that its values can be computed from its parts.

    Raises InvalidRequest when the model's logits are not its LM head over its backbone's states, or when a token
    changes the states before it: such a model has no V(s_t) that this pass could compute.
    """

    def __init__(self, model: Any, longest: int, settings: ServeSettings) -> None:
        name = _backbone_name(model)
        self._max_batch_tokens = settings.max_batch_tokens
        with torch.inference_mode():
            self._backbone = Backbone(model, getattr(model, name), longest)
            probe_1L = torch.arange(min(24, longest))[None] * 7919 % model.config.get_text_config().vocab_size
            output = self._backbone.read(probe_1L, use_cache=False)
            self._head = Head(model, name, type(output), settings.head_chunk)
            self._verify(model, probe_1L, output.last_hidden_state)

    @torch.inference_mode()
    def score(self, questions: Sequence[Question], max_tokens: int | None = None) -> list[Answer]:
        """An answer to each question, in batches of at most `max_tokens`, by default --max-batch-tokens.

        When memory runs out, the questions are halved, then one question's rows.
        """
        max_tokens = max_tokens or self._max_batch_tokens
        try:
            return list(self._tables(questions, max_tokens))
        except torch.OutOfMemoryError:
            pass  # halved below, where the error's traceback no longer holds the failed pass's tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(questions) > 1:
            middle = len(questions) // 2
            halves = questions[:middle], questions[middle:]
            return [answer for half in halves for answer in self.score(half, max_tokens)]
        prompt, completion = len(questions[0].prompt), max(map(len, questions[0].completions))
        padded = min(max_tokens, len(questions[0].completions) * (prompt + completion))
        if padded > prompt + completion:
            return self.score(questions, padded // 2)
        reason = f"the device's memory does not hold a prompt of {prompt} and a completion of {completion} tokens"
        return [TeacherUnavailable(f"{reason}; lower head_chunk, or give the teacher a larger device")]

    def _tables(self, questions: Sequence[Question], max_tokens: int) -> list[list[Float32]]:
        """Each question's columns are picked from those of all questions, which one reduction computes together."""
        columns = list(dict.fromkeys(name for question in questions for name in question.columns))
        tables: dict[Row, Float32] = {}
        for states in self._backbone.states(questions, max_tokens):
            table_SK = self._head.reduce(states.hidden, states.actions, columns).numpy()
            lengths = [len(questions[number].completions[index]) + 1 for number, index in states.rows]
            tables.update(zip(states.rows, np.split(table_SK, np.cumsum(lengths)[:-1]), strict=True))
        return [
            [
                np.take(tables[number, index], [columns.index(name) for name in question.columns], axis=1)
                for index in range(len(question.completions))
            ]
            for number, question in enumerate(questions)
        ]

    def _verify(self, model: Any, probe_1L: Tensor, hidden_1LD: Tensor) -> None:
        """Compare the pass with the model's own forward on a few tokens, so that no architecture is taken on trust."""
        logits_LV = model(input_ids=probe_1L.to(model.device)).logits[0].float()
        probe_L = probe_1L[0].to(model.device)
        if not bool(logits_LV.isfinite().all()):
            advice = "they overflow float16: serve it in bfloat16 or float32"
            if model.dtype != torch.float16:
                advice = "its weights are damaged, so copy them again"
            raise InvalidRequest(f"the teacher's logits are not all finite; {advice}")
        # Wide enough for the dtype's rounding; a wrong scale, position or mask is far outside.
        relative = 1e-3 if model.dtype == torch.float32 else 5e-2
        tolerance = float(logits_LV.abs().max()) * relative

        head_LV = self._head.logits(hidden_1LD[0]).float()
        logits_LV = logits_LV[:, : head_LV.shape[1]]
        if not torch.allclose(head_LV, logits_LV, rtol=0, atol=tolerance):
            raise InvalidRequest(f"{type(model).__name__} makes its logits from more than its backbone's last states")
        changed_1L = probe_1L.clone()
        changed_1L[:, -1] = probe_1L[:, 0]
        changed_1LD = self._backbone.read(changed_1L, use_cache=False).last_hidden_state
        scale = float(hidden_1LD.abs().max()) * relative
        if not torch.allclose(changed_1LD[:, :-1], hidden_1LD[:, :-1], rtol=0, atol=scale):
            raise InvalidRequest(f"{type(model).__name__} is not causal: a token changes the states before it")

        if self._backbone.shares_prompts:
            ids = probe_L.tolist()
            questions = [Question(ids[:split], [ids[split:]], (VALUE,)) for split in (1, len(ids) // 2)]
            values_L = reduce(logits_LV, probe_L, [VALUE]).flatten().cpu().numpy()
            # Narrower, because reading prompts again is no loss but of time: some models amplify rounding.
            tolerance /= 5
            for (numbers_SK,) in self._tables(questions, self._max_batch_tokens):
                if not np.allclose(numbers_SK.ravel(), values_L[-len(numbers_SK) :], rtol=0, atol=tolerance):
                    logger.warning("%s: its cache cannot be shared; prompts are read again", type(model).__name__)
                    self._backbone.shares_prompts = False
                    break


def _backbone_name(model: Any) -> str:
    """The attribute that holds the layers below the LM head: `base_model_prefix`, or "model" where that is not true."""
    for name in (model.base_model_prefix, "model"):
        if name in model._modules:
            return str(name)
    raise InvalidRequest(f"{type(model).__name__} has no backbone apart from its LM head")
