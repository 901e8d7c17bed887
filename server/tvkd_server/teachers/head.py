"""From hidden states to the few numbers a state that leave the device."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tvkd_shared.record import ACTION_LOGIT, ENTROPY, temperature_of


class Softmax:
    """The softmax of some states' logits, in the parts that columns are computed from.

    action_S    l[action], the logit of the token that follows
    top_S       the largest logit
    shifted_SV  l − top, and −1e30 where that is −∞
    total_S     Σ exp(shifted)
    mean_S      the mean of shifted under π_1

    Float32 logits are written over. At most two tensors as wide as the vocabulary exist at once.
    """

    def __init__(self, logits_SV: Tensor, actions_S: Tensor) -> None:
        logits_SV = logits_SV.float()
        self.action_S = logits_SV.gather(1, actions_S[:, None])[:, 0]
        self.top_S = logits_SV.amax(1)
        # −∞ has no probability, and so no part in a mean: without the floor 0 · −∞ would be NaN.
        self.shifted_SV = logits_SV.sub_(self.top_S[:, None]).clamp_(min=-1e30)
        self._scratch_SV = self.shifted_SV.exp()
        self.total_S = self._scratch_SV.sum(1)
        self.mean_S = self._scratch_SV.mul_(self.shifted_SV).sum(1) / self.total_S

    def exponentials(self, temperature: float = 1.0) -> Tensor:
        """exp(shifted / τ), shape (S, V). The caller may write over it, and the next call does."""
        return torch.div(self.shifted_SV, temperature, out=self._scratch_SV).exp_()


def _value(softmax: Softmax, temperature: float) -> Tensor:
    total_S = softmax.total_S if temperature == 1 else softmax.exponentials(temperature).sum(1)
    return softmax.top_S + temperature * total_S.log()


COLUMN_FUNCTIONS: dict[str, Callable[[Softmax], Tensor]] = {
    ACTION_LOGIT: lambda softmax: softmax.action_S,
    ENTROPY: lambda softmax: softmax.total_S.log() - softmax.mean_S,
}
"""How each column but the values is computed, shape (S,), by the definitions of `tvkd_shared.value`."""


def column_function(name: str) -> Callable[[Softmax], Tensor]:
    """How a column is computed. Raises ValueError for a name that no teacher computes."""
    if name in COLUMN_FUNCTIONS:
        return COLUMN_FUNCTIONS[name]
    temperature = temperature_of(name)
    if temperature is None:
        raise ValueError(f"no teacher computes column {name!r}; there are {', '.join(COLUMN_FUNCTIONS)} and value_τ")
    return partial(_value, temperature=temperature)


def reduce(logits_SV: Tensor, actions_S: Tensor, columns: Sequence[str]) -> Tensor:
    """The columns of each state, in the order of their names: shape (S, K), float32 whatever the logits are."""
    softmax = Softmax(logits_SV, actions_S)
    return torch.stack([column_function(name)(softmax) for name in columns], 1)


def reduce_hidden(
    logits: Callable[[Tensor], Tensor | None], hidden_SD: Tensor, actions_S: Tensor, columns: Sequence[str], chunk: int
) -> Tensor:
    """The same from hidden states, on the CPU. The logits of `chunk` states exist at once.

    Where `logits` returns None, because another process has them, the numbers are zeros.
    """
    table_SK = torch.zeros(len(hidden_SD), len(columns), device=hidden_SD.device)
    for begin in range(0, len(hidden_SD), chunk):
        part = slice(begin, begin + chunk)
        if (logits_SV := logits(hidden_SD[part])) is not None:
            table_SK[part] = reduce(logits_SV, actions_S[part], columns)
    return table_SK.cpu()


class Head:
    """What the model does after its backbone, run on given hidden states, some rows at a time.

    This is the model's own forward pass with the backbone replaced by a stand-in that returns the hidden states, so
    that logit scale, soft cap and bias are those of the architecture.
    """

    def __init__(self, model: Any, backbone: str, output_class: type, chunk: int) -> None:
        """`backbone` names the model's part below its head, `output_class` is what its forward returns, and `chunk` is
        the number of rows whose logits exist at once."""
        self._backbone = _FixedBackbone(getattr(model, backbone), output_class)
        self._model = copy.copy(model)
        self._model._modules = dict(model._modules) | {backbone: self._backbone}
        self._vocab_size = model.config.get_text_config(decoder=True).vocab_size
        self._chunk = chunk
        self._no_token = torch.zeros((1, 1), dtype=torch.long, device=model.device)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Raw next-token logits of each state, shape (S, V), over the config's `vocab_size` rows."""
        self._backbone.hidden_1SD = hidden_SD[None]
        try:
            logits_1SV: Tensor = self._model(input_ids=self._no_token.expand(1, len(hidden_SD)), use_cache=False).logits
        finally:
            self._backbone.hidden_1SD = None
        return logits_1SV[0, :, : self._vocab_size]

    def reduce(self, hidden_SD: Tensor, actions_S: Tensor, columns: Sequence[str]) -> Tensor:
        """The columns of each state, shape (S, K), float32, on the CPU; see `reduce`."""
        return reduce_hidden(self.logits, hidden_SD, actions_S, columns, self._chunk)


class _FixedBackbone(nn.Module):
    """Stands in for the backbone and returns the hidden states that were set. What else it has, the model may read."""

    def __init__(self, backbone: Any, output_class: type) -> None:
        super().__init__()
        self._replaced = (backbone,)  # in a tuple, so that it is no part of this module
        self._output_class = output_class
        self.hidden_1SD: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_replaced"][0], name)

    @property
    def decoder(self) -> "_FixedBackbone":
        """OPT's causal LM calls its backbone's `decoder` and not the backbone."""
        return self

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output_class(last_hidden_state=self.hidden_1SD)
