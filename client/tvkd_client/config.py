"""Settings of the TVKD trainer: TRL's DPOConfig, the objective, and where values come from."""

from dataclasses import dataclass, fields
from typing import get_args

import torch
from trl.trainer.dpo_config import DPOConfig

from tvkd_client.training_settings import Role, TrainingSettings
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.objective import Objective
from tvkd_shared.shaping import Shaping, check_choice, finite


@dataclass
class TVKDConfig(TrainingSettings, DPOConfig):
    """DPOConfig with an objective that reads a teacher's values, and the places where the values are.

    `tvkd_shared.objective` has the objectives. The choices of shaping and their defaults are those of `Shaping`; α is
    that of the authors' recipe. Objective tvkd with α = 0 is DPO to the bit and needs no teacher.

    A place is a server's URL, or a store: a folder or s3://…. Raises InvalidRequest, one line, for a setting that has
    no meaning here.
    """

    def __post_init__(self) -> None:
        # TRL's default is true, and ends in an error where there is no GPU.
        if self.bf16 is None and not torch.accelerator.is_available():
            self.bf16 = False
        DPOConfig.__post_init__(self)  # type: ignore[no-untyped-call]
        TrainingSettings.__post_init__(self)
        check_choice("objective", self.objective, get_args(Objective))
        for name in ("alpha", "strength", "dpo_weight"):
            setattr(self, name, finite(name, getattr(self, name)))
        for name in ("max_value_error", "reference_tolerance"):
            if getattr(self, name) is not None and finite(name, getattr(self, name)) < 0:
                raise InvalidRequest(f"{name} {getattr(self, name)} is below 0")
        self._check_objective()
        self._check_places()
        self._check_dpo()

    @property
    def shaping(self) -> Shaping:
        return Shaping(*(getattr(self, choice.name) for choice in fields(Shaping)))

    def temperatures_of(self, role: str) -> tuple[float, ...]:
        """The temperatures of the values that are read of a role; the log-probs of other roles need 1.0 alone."""
        return self.shaping.temperatures if role == "teacher" and self.objective == "tvkd" else (1.0,)

    def _check_objective(self) -> None:
        if self.objective != "token" and (self.center or self.dpo_weight):
            name = "center" if self.center else "dpo_weight"
            raise InvalidRequest(f"{name} belongs to objective token, and objective is {self.objective}; leave it out")
        if self.objective != "tvkd" and self.recipe:
            raise InvalidRequest(f"recipe belongs to objective tvkd, and objective is {self.objective}; leave it out")
        if self.objective == "tvkd":
            if self.form == "tpkd-ref" and self.gamma == 1:
                raise InvalidRequest("form tpkd-ref is 0 for every token with gamma 1; set gamma below 1")
            if self.strength != 1:
                raise InvalidRequest("strength belongs to objectives token and soft-label; that of tvkd is alpha")
            return
        if self.loss_type != ["sigmoid"] or self.loss_weights not in (None, [1.0]):
            raise InvalidRequest(
                f"loss_type {self.loss_type} with loss_weights {self.loss_weights}: objective {self.objective} is"
                " defined for [sigmoid] alone"
            )
        if self.sync_ref_model:
            raise InvalidRequest(
                f"sync_ref_model moves the student's reference, and objective {self.objective} regresses onto what was"
                " learned from a fixed one; leave it out"
            )
        if self.precompute_ref_log_probs and not self.reference:
            raise InvalidRequest(
                f"precompute_ref_log_probs keeps a sum for each completion, and objective {self.objective} needs the"
                " reference log-prob of each token; set reference, or leave it out"
            )

    def _check_places(self) -> None:
        roles = get_args(Role)
        for name in (*roles, *(f"{role}_id" for role in roles), "teacher_tokenizer"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"{name} {value!r} is {type(value).__name__}, not text; put it in quotes")
        if not isinstance(self.value_concurrency, int) or self.value_concurrency < 1:
            raise InvalidRequest(f"value_concurrency {self.value_concurrency!r} is not a whole number of 1 or more")

    def _check_dpo(self) -> None:
        others = [kind for kind in self.loss_type if kind not in ("sigmoid", "sft")]
        if others or "sigmoid" not in self.loss_type:
            raise InvalidRequest(
                f"loss_type {self.loss_type} is not [sigmoid] or [sigmoid, sft]: shaping is defined there"
            )
        if self.f_divergence_type != "reverse_kl":
            raise InvalidRequest(
                f"f_divergence_type {self.f_divergence_type} is not reverse_kl: shaping adds to the log-ratio itself"
            )
        if not finite("beta", self.beta) > 0:
            raise InvalidRequest(f"beta {self.beta} is not above 0: shaping is folded into the reference as α/β")
        if self.truncation_mode != "keep_start":
            raise InvalidRequest(
                f"truncation_mode {self.truncation_mode} is not keep_start: it drops context that the teacher saw"
            )
        if self.use_weighting:
            raise InvalidRequest(
                "use_weighting true weighs each pair by the policy's own certainty, another loss; leave it false"
            )
        if self.label_smoothing != 0:
            raise InvalidRequest(
                f"label_smoothing {self.label_smoothing} belongs to other losses than sigmoid, and shaping is defined"
                " there; leave it 0"
            )
        if self.ld_alpha is not None:
            raise InvalidRequest(f"ld_alpha {self.ld_alpha} weighs log-probs by position, and shaping has no such form")
        if getattr(self.accelerator_config, "dispatch_batches", None):
            raise InvalidRequest(
                "dispatch_batches true tears pairs apart: it sends the chosen and the rejected half to different"
                " processes; leave it false"
            )
