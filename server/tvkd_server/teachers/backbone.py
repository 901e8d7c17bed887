"""Hidden states of completions: a prompt is read once, and each of its completions after it."""

import copy
import inspect
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

    def __init__(self, model: Any, longest: int) -> None:
        self._forward = model.base_model
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
        if chunked or not positions:
            return False
        cache = getattr(self.read(torch.zeros((1, 2), dtype=torch.long), use_cache=True), "past_key_values", None)
        rows_of_keys = {DynamicLayer, DynamicSlidingWindowLayer}
        return type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= rows_of_keys

    def read(self, ids_RL: Tensor, **arguments: Any) -> Any:
        """One forward pass; returns the backbone's own output."""
        return self._forward(input_ids=ids_RL.to(self._device), **arguments)

    def states(self, questions: Sequence[Question], max_tokens: int) -> Iterator[States]:
        """States of every completion of the questions, in groups of at most `max_tokens` padded tokens, or one row."""
        return (self._shared if self.shares_prompts else self._unshared)(questions, max_tokens)

    def _shared(self, questions: Sequence[Question], max_tokens: int) -> Iterator[States]:
        prompts_N = torch.tensor([len(question.prompt) for question in questions])
        width = int(prompts_N.max())
        ids_NP = _padded([question.prompt for question in questions], left=True)
        places_P = torch.arange(width)
        # Prompts are padded on the left, so that windows and positions continue into the completions.
        mask_NP = (places_P >= width - prompts_N[:, None]).to(self._device)
        positions_NP = (places_P - (width - prompts_N[:, None])).clamp(min=0)
        output = self.read(
            ids_NP, attention_mask=mask_NP.long(), position_ids=positions_NP.to(self._device), use_cache=True
        )
        border_ND = output.last_hidden_state[:, -1].clone()
        cache = output.past_key_values
        del output
        for rows in _groups(questions, max_tokens, width):
            completions = [questions[question].completions[index] for question, index in rows]
            question_R = torch.tensor([question for question, _ in rows])
            ids_RT = _padded(completions)
            ones_RT = torch.ones_like(ids_RT).to(self._device)
            positions_RT = prompts_N[question_R][:, None] + torch.arange(ids_RT.shape[1])
            on_device_R = question_R.to(self._device)
            hidden_RTD = self.read(
                ids_RT,
                # Padding at the end needs no mask: no real token looks forward, and no row is masked throughout.
                attention_mask=torch.cat([mask_NP[on_device_R].long(), ones_RT], 1),
                position_ids=positions_RT.clamp(max=self._longest - 1).to(self._device),
                past_key_values=_rows_of(cache, on_device_R),
                use_cache=True,
            ).last_hidden_state
            hidden_RSD = torch.cat([border_ND[on_device_R][:, None], hidden_RTD], 1)
            yield self._real_states(rows, completions, hidden_RSD)

    def _unshared(self, questions: Sequence[Question], max_tokens: int) -> Iterator[States]:
        for rows in _groups(questions, 0 if self._one_at_a_time else max_tokens):
            completions = [questions[question].completions[index] for question, index in rows]
            prompts = [questions[question].prompt for question, _ in rows]
            ids_RL = _padded([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])
            hidden_RLD = self.read(ids_RL, use_cache=False).last_hidden_state
            longest = max(map(len, completions)) + 1
            # A row's states, moved to begin at 0; what lies beyond the row is dropped with the padding.
            starts_R = torch.tensor([len(prompt) - 1 for prompt in prompts])
            places_RS = (starts_R[:, None] + torch.arange(longest)).clamp(max=ids_RL.shape[1] - 1).to(self._device)
            hidden_RSD = hidden_RLD.gather(1, places_RS[..., None].expand(-1, -1, hidden_RLD.shape[-1]))
            yield self._real_states(rows, completions, hidden_RSD)

    def _real_states(self, rows: list[Row], completions: list[list[int]], hidden_RSD: Tensor) -> States:
        lengths_R = torch.tensor([len(completion) for completion in completions])
        real_RS = torch.arange(hidden_RSD.shape[1]) <= lengths_R[:, None]
        actions_RS = _padded([[*completion, 0] for completion in completions])
        hidden_SD = hidden_RSD[real_RS.to(self._device)]
        return States(rows, hidden_SD, actions_RS[real_RS].to(self._device))


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
