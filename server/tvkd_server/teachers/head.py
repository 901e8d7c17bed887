"""From hidden states to the few numbers a state that leave the device."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Head:
    """What the model does after its backbone, run on given hidden states a chunk of rows at a time.

    It is the model's own forward with the backbone replaced by a stand-in that hands back the hidden states, so that
    logit scale, soft cap and bias are those of the architecture, whichever it is.
    """

    def __init__(self, model: Any, output_class: type, chunk: int) -> None:
        """`output_class` is what the backbone's forward returns; `chunk` the rows whose logits exist at once."""
        self._given = _Given(output_class)
        self._model = copy.copy(model)
        self._model._modules = dict(model._modules) | {model.base_model_prefix: self._given}
        self._vocab_size = model.config.get_text_config(decoder=True).vocab_size
        self._chunk = chunk
        self._no_token = torch.zeros((1, 1), dtype=torch.long, device=model.device)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Raw next-token logits of each state, shape (S, V), over the config's `vocab_size` rows."""
        self._given.hidden_1SD = hidden_SD[None]
        try:
            output = self._model(input_ids=self._no_token.expand(1, len(hidden_SD)), use_cache=False)
            logits_1SV: Tensor = output.logits
        finally:
            self._given.hidden_1SD = None
        return logits_1SV[0, :, : self._vocab_size]

    def reduce(self, hidden_SD: Tensor, actions_S: Tensor, temperatures: Sequence[float]) -> Tensor:
        """V_τ of each temperature, then the entropy, then the action's logit: shape (S, K + 2), float32, on the CPU."""
        chunks = zip(torch.split(hidden_SD, self._chunk), torch.split(actions_S, self._chunk), strict=True)
        return torch.cat([reduce(self.logits(hidden), actions, temperatures) for hidden, actions in chunks]).cpu()


def reduce(logits_SV: Tensor, actions_S: Tensor, temperatures: Sequence[float]) -> Tensor:
    """The columns V_τ …, H(π_1), l[action] of each state, shape (S, K + 2), float32 whatever the logits are.

    The definitions of `tvkd_shared.value`, with the largest logit subtracted. Float32 logits are written over: two
    tensors as wide as the vocabulary are held, never more.
    """
    logits_SV = logits_SV.float()
    action_S = logits_SV.gather(1, actions_S[:, None])[:, 0]
    top_S = logits_SV.amax(1)
    # −∞ has no probability, and so no part in the entropy: without the floor 0 · −∞ would be NaN.
    shifted_SV = logits_SV.sub_(top_S[:, None]).clamp_(min=-1e30)
    exponentials_SV = shifted_SV.exp()
    total_S = exponentials_SV.sum(1)
    log_total_S = total_S.log()
    entropy_S = log_total_S - exponentials_SV.mul_(shifted_SV).sum(1) / total_S
    values = []
    for temperature in temperatures:
        if temperature == 1:
            values.append(top_S + log_total_S)
        else:
            torch.div(shifted_SV, temperature, out=exponentials_SV)
            values.append(top_S + temperature * exponentials_SV.exp_().sum(1).log())
    return torch.stack([*values, entropy_S, action_S], 1)


class _Given(nn.Module):
    """Stands where the backbone stood and returns the hidden states it was given."""

    def __init__(self, output_class: type) -> None:
        super().__init__()
        self._output_class = output_class
        self.hidden_1SD: Tensor | None = None

    @property
    def decoder(self) -> "_Given":
        """OPT's causal LM calls its backbone's `decoder` rather than the backbone."""
        return self

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output_class(last_hidden_state=self.hidden_1SD)
