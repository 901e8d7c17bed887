"""Settings of the TVKD trainer: TRL's DPOConfig and what shaping adds to it."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from trl.trainer.dpo_config import DPOConfig

from tvkd_shared.errors import InvalidRequest
from tvkd_shared.shaping import Shaping, check_choice, finite

Source = Literal["server", "bulk", "store"]


@dataclass
class TVKDConfig(Shaping, DPOConfig):
    """DPOConfig with the shaping term: L = −log σ(β·[Δ log π_θ/π_ref] + α·[S(chosen) − S(rejected)]).

    The choices of shaping and their defaults are those of `Shaping`; α is that of the authors' recipe. α = 0 is DPO to
    the bit and needs no value source.

    Raises InvalidRequest, one line, for a setting that has no meaning here.
    """

    alpha: float = field(
        default=0.7, metadata={"help": "Weight of the shaping margin; 0 is DPO, and it may be negative."}
    )
    value_source: Source | None = field(
        default=None,
        metadata={"help": "Where values come from: a server as needed, a server filled first, or a store's folder."},
    )
    server: str | None = field(
        default=None, metadata={"help": "URL of `tvkd serve`, for value_source server and bulk."}
    )
    teacher_id: str | None = field(
        default=None, metadata={"help": "Refuse values of any other teacher. Default: whichever answers."}
    )
    store: str | None = field(
        default=None, metadata={"help": "Value store, for value_source store: a folder, or s3://…; no server is asked."}
    )
    max_value_error: float | None = field(
        default=None,
        metadata={"help": "Refuse a store with no certificate (`tvkd store verify --rescore`) of errors up to this."},
    )
    other_vocabulary: bool = field(
        default=False,
        metadata={"help": "Take a student whose vocabulary differs from the teacher's in tokens the data never use."},
    )
    value_concurrency: int = field(
        default=4, metadata={"help": "Micro-batches whose values may be under way at once, in each process."}
    )

    quiet: bool = field(default=False, metadata={"help": "Do not show the first pair before training."})

    def __post_init__(self) -> None:
        DPOConfig.__post_init__(self)  # type: ignore[no-untyped-call]
        Shaping.__post_init__(self)
        self.alpha = finite("alpha", self.alpha)
        if self.max_value_error is not None and finite("max_value_error", self.max_value_error) < 0:
            raise InvalidRequest(f"max_value_error {self.max_value_error} is below 0")
        self._check_source()
        self._check_dpo()

    @property
    def shaping(self) -> Shaping:
        return Shaping(*(getattr(self, choice.name) for choice in fields(Shaping)))

    def _check_source(self) -> None:
        for name in ("server", "teacher_id", "store"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"{name} {value!r} is {type(value).__name__}, not text; put it in quotes")
        if not isinstance(self.value_concurrency, int) or self.value_concurrency < 1:
            raise InvalidRequest(f"value_concurrency {self.value_concurrency!r} is not a whole number of 1 or more")
        if self.value_source is None:
            return
        check_choice("value_source", self.value_source, get_args(Source))
        needed = "store" if self.value_source == "store" else "server"
        if not getattr(self, needed):
            raise InvalidRequest(f"value_source {self.value_source} needs {needed}, which is not set")
        if self.value_source == "store" and "://" not in str(self.store) and not Path(str(self.store)).is_dir():
            raise InvalidRequest(f"store {self.store} is no folder; a server makes one with `tvkd serve --store`")

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
