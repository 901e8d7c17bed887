"""Hidden states of completions: a prompt is read once, and each of its completions after it."""

import copy
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tvkd_server.teachers.teacher import Question

Item = TypeVar("Item")

Row = tuple[int, int]
"""Which question of a micro-batch, and which of its completions."""


@dataclass(frozen=True, slots=True)
class States:
    """States of some completions, row after row, T + 1 each: `hidden` of shape (S, D), `actions` of shape (S,).

    The last state of a row has no action; 0 stands in its place.
    """

    rows: list[Row]
    hidden: Tensor
    actions: Tensor


class Backbone:
    """The model's layers below its LM head, and whether they can read a prompt once for all its completions.

    `shares_prompts` is false for layers whose cache is not rows of keys and values (state-space layers and others), for
    models that take no positions, and for RoPE whose frequencies depend on the batch's longest sequence. Each
    completion is then read with its prompt, right-padded or alone, which any causal model does correctly.
    """

    def __init__(self, model: Any, layers: Any, longest: int) -> None:
        """`layers` is the part of the model below its LM head."""
        self._forward = layers
        self._device = model.device
        self._longest = longest
        rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None)
        self._one_at_a_time = "longrope" in str(rope)  # a dict, or one for each type of layer
        self.shares_prompts = not self._one_at_a_time and self._can_share()

    def _can_share(self) -> bool:
        config = self._forward.config.get_text_config(decoder=True)
        # Chunks begin at fixed places of a row, and left padding would move them.
        chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
        positions = "position_ids" in inspect.signature(self._forward.forward).parameters
        if chunked or not positions or not self._masks_its_window(config):
            return False
        cache = getattr(self.read(torch.zeros((1, 2), dtype=torch.long), use_cache=True), "past_key_values", None)
        rows_of_keys = {DynamicLayer, DynamicSlidingWindowLayer}
        return type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= rows_of_keys

    def _masks_its_window(self, config: Any) -> bool:
        """Whether a window, if config names one, is masked as transformers' cache drops keys beyond it.

        Moshi's forward pass masks none, so that what follows a cached prompt has other values beyond the window.
        """
        modules = {sys.modules[type(part).__module__] for part in self._forward.modules()}
        return not getattr(config, "sliding_window", None) or any(
            hasattr(module, "create_sliding_window_causal_mask") for module in modules
        )

    def read(self, ids_RL: Tensor, **arguments: Any) -> Any:
        """One forward pass; returns the backbone's own output."""
        return self._forward(input_ids=ids_RL.to(self._device), **arguments)

    def states(self, questions: Sequence[Question], max_tokens: int) -> Iterator[States]:
        """States of every completion of the questions, in groups of at most `max_tokens` padded tokens, or one row."""
        return (self._shared if self.shares_prompts else self._unshared)(questions, max_tokens)

    def _shared(self, questions: Sequence[Question], max_tokens: int) -> Iterator[States]:
        prompts_N = torch.tensor([len(question.prompt) for question in questions])
        width = int(prompts_N.max())
        # Prompts are padded on the left, so that windows and positions continue into the completions.
        positions_NP = torch.arange(width) - (width - prompts_N[:, None])
        mask_NP = (positions_NP >= 0).long().to(self._device)
        output = self.read(
            _padded([question.prompt for question in questions], left=True),
            attention_mask=mask_NP,
            position_ids=positions_NP.clamp(min=0).to(self._device),
            use_cache=True,
        )
        first_state_ND, cache = output.last_hidden_state[:, -1].clone(), output.past_key_values
        del output
        for rows in _groups(questions, max_tokens, width):
            completions = [questions[number].completions[index] for number, index in rows]
            number_R = torch.tensor([number for number, _ in rows])
            ids_RT = _padded(completions)
            positions_RT = prompts_N[number_R][:, None] + torch.arange(ids_RT.shape[1])
            number_R = number_R.to(self._device)
            hidden_RTD = self.read(
                ids_RT,
                # Padding at the end needs no mask: no real token looks forward, and no row is masked throughout.
                attention_mask=torch.cat([mask_NP[number_R], torch.ones_like(ids_RT).to(self._device)], 1),
                position_ids=positions_RT.clamp(max=self._longest - 1).to(self._device),
                past_key_values=_rows_of(cache, number_R),
                use_cache=True,
            ).last_hidden_state
            hidden_RSD = torch.cat([first_state_ND[number_R][:, None], hidden_RTD], 1)
            yield self._states(rows, hidden_RSD, [0] * len(rows), completions)

    def _unshared(self, questions: Sequence[Question], max_tokens: int) -> Iterator[States]:
        for rows in _groups(questions, 0 if self._one_at_a_time else max_tokens):
            completions = [questions[number].completions[index] for number, index in rows]
            prompts = [questions[number].prompt for number, _ in rows]
            ids_RL = _padded([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])
            hidden_RLD = self.read(ids_RL, use_cache=False).last_hidden_state
            yield self._states(rows, hidden_RLD, [len(prompt) - 1 for prompt in prompts], completions)

    def _states(self, rows: list[Row], hidden_RLD: Tensor, starts: list[int], completions: list[list[int]]) -> States:
        """The T + 1 states of each row from its start on, without padding."""
        starts_R, lengths_R = torch.tensor(starts), torch.tensor(list(map(len, completions)))
        steps_RL = torch.arange(hidden_RLD.shape[1]) - starts_R[:, None]
        scored_RL = (steps_RL >= 0) & (steps_RL <= lengths_R[:, None])
        actions_S = torch.tensor([token for completion in completions for token in (*completion, 0)])
        return States(rows, hidden_RLD[scored_RL.to(self._device)], actions_S.to(self._device))


def micro_batches(questions: Sequence[Question], max_tokens: int) -> list[list[int]]:
    """Indices of the questions in groups of similar prompt length, at most `max_tokens` padded prompt tokens or one."""
    return _packed([(index, len(question.prompt)) for index, question in enumerate(questions)], max_tokens)


def _groups(questions: Sequence[Question], max_tokens: int, prefix: int | None = None) -> list[list[Row]]:
    """Rows of similar length: before each completion stand `prefix` padded tokens, or its own prompt."""
    sized = [
        ((number, index), len(completion) + (len(question.prompt) if prefix is None else prefix))
        for number, question in enumerate(questions)
        for index, completion in enumerate(question.completions)
    ]
    return _packed(sized, max_tokens)


def _packed(sized: Sequence[tuple[Item, int]], max_tokens: int) -> list[list[Item]]:
    """Groups in order of size whose number × largest size stays within `max_tokens`, of at least one item."""
    groups: list[list[Item]] = []
    for item, size in sorted(sized, key=itemgetter(1)):
        if not groups or (len(groups[-1]) + 1) * size > max_tokens:
            groups.append([])
        groups[-1].append(item)
    return groups


def _padded(sequences: Sequence[Sequence[int]], *, left: bool = False) -> Tensor:
    width = max(map(len, sequences))
    padding = [[0] * (width - len(sequence)) for sequence in sequences]
    rows = zip(padding, sequences, strict=True)
    return torch.tensor([[*pad, *ids] if left else [*ids, *pad] for pad, ids in rows])


def _rows_of(cache: DynamicCache, rows_R: Tensor) -> DynamicCache:
    """The cache with its rows selected and repeated; the original keeps its own."""
    selection = copy.copy(cache)
    selection.layers = [copy.copy(layer) for layer in cache.layers]
    selection.batch_select_indices(rows_R)
    return selection
