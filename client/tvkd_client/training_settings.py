"""tvkd's own settings of a training, apart from TRL's, so that `tvkd train --help` need not import TRL."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, get_args

from tvkd_client.dataset_flags import PROMPT_COLUMN
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.objective import Objective
from tvkd_shared.shaping import POTENTIALS, RECIPES, Recipe, Shaping, check_choice

Role = Literal["teacher", "teacher_reference", "reference"]
"""T, a DPO-trained model; T0, the SFT model that its DPO started from; π_ref, the student before its training."""


@dataclass
class DataSettings:
    """Which columns of a data set are which."""

    prompt_column: str | None = field(default=None, metadata={"help": f"The {PROMPT_COLUMN}."})
    chosen_column: str | None = field(default=None, metadata={"help": "The column of the better completion."})
    rejected_column: str | None = field(default=None, metadata={"help": "The column of the worse completion."})


@dataclass
class TrainingSettings(Shaping):
    """The objective and the places where values are; `tvkd_client.config` checks them."""

    objective: Objective = field(
        default="tvkd",
        metadata={"help": "The published loss, regression of each token's log-ratio, or DPO with soft labels."},
    )
    recipe: Recipe | None = field(
        default=None,
        metadata={
            "help": "Objective tvkd: a loss of the authors' code, tpkd-ref or softvalue-sum. It sets alpha, potential,"
            " temperature, terminal, aggregate and form; gamma is left to choose."
        },
    )
    # None, where it is not given, until __post_init__.
    alpha: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Objective tvkd: weight of the shaping margin; 0 is DPO, and it may be negative. Default: 0.7, or"
            " what the recipe sets."
        },
    )
    strength: float = field(
        default=1.0, metadata={"help": "Objectives token and soft-label: k, the weight of the teacher's advantage."}
    )
    center: bool = field(
        default=False, metadata={"help": "Objective token: subtract the mean of A over the training data."}
    )
    dpo_weight: float = field(
        default=0.0, metadata={"help": "Objective token: λ, the weight of DPO's own loss beside the regression."}
    )
    teacher: str | None = field(default=None, metadata={"help": "Where the teacher's values come from."})
    teacher_reference: str | None = field(
        default=None, metadata={"help": "Where the values of the teacher before its DPO come from, for its advantage."}
    )
    reference: str | None = field(
        default=None,
        metadata={"help": "Where the student's reference log-probs come from; by default TRL computes them."},
    )
    teacher_id: str | None = field(
        default=None, metadata={"help": "Id of the teacher, or its name where one model there has it."}
    )
    teacher_reference_id: str | None = field(default=None, metadata={"help": "The same for teacher_reference."})
    reference_id: str | None = field(default=None, metadata={"help": "The same for reference."})
    teacher_model: str | None = field(
        default=None, metadata={"help": "The teacher's checkpoint, from which `tvkd prefetch --models` fills a store."}
    )
    teacher_reference_model: str | None = field(
        default=None, metadata={"help": "The same for teacher_reference; that of reference is model_name_or_path."}
    )
    teacher_tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "The teacher's tokens: the student's own, or the teacher's of the same text, made by its server"
            " (`server`) or with the tokenizer of a folder."
        },
    )
    bulk: bool = field(default=False, metadata={"help": "Have servers compute all values before the first step."})
    reference_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Largest difference, in nats a token, between stored reference log-probs and TRL's own on the first"
            " batch. Default: 0.001, or 0.05 where the student computes in half precision."
        },
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
    accept_changed: bool = field(
        default=False,
        metadata={"help": "Resume from a checkpoint that another model, objective or reading trained; see tvkd.json."},
    )
    quiet: bool = field(default=False, metadata={"help": "Do not show the first pair before training."})

    def __post_init__(self) -> None:
        if self.recipe is not None:
            check_choice("recipe", self.recipe, get_args(Recipe))
            self._follow(self.recipe)
        if self.alpha is None:
            self.alpha = 0.7
        super().__post_init__()

    def _follow(self, recipe: Recipe) -> None:
        """Sets what a recipe sets. Raises InvalidRequest for a setting that is neither its default nor the recipe's."""
        defaults = {one.name: one.default for one in fields(TrainingSettings)}
        for name, value in RECIPES[recipe].items():
            given = getattr(self, name)
            if given not in (defaults[name], value):
                raise InvalidRequest(
                    f"{name} {given} contradicts recipe {recipe}, whose {name} is {value}; leave one out"
                )
            setattr(self, name, value)

    def reads(self, role: Role) -> bool:
        """Whether the objective reads a role's values where they are given."""
        needs_teacher = self.objective != "tvkd" or self.alpha != 0
        needs_base = needs_teacher and (self.objective != "tvkd" or POTENTIALS[self.potential].relative)
        return {"teacher": needs_teacher, "teacher_reference": needs_base}.get(role, True)


def help_text() -> str:
    """What `tvkd train --help` prints: how the command is called, and tvkd's own settings."""
    lines = [f"  --{one.name} {_default(one)}\n      {one.metadata['help']}" for one in _settings()]
    return (
        "usage: tvkd train --config FILE.yaml [--setting value …]\n\n"
        "Settings are those of the file, and flags override them. `tvkd train --example > tvkd.yaml` writes a file to\n"
        "start from. These are tvkd's own:\n\n" + "\n".join(lines) + "\n\n"
        "Every setting of TRL's DPO script is one too, such as --model_name_or_path, --dataset_name and --output_dir:\n"
        "`tvkd train --help-trl` lists them, which takes some seconds."
    )


def _settings() -> Iterator["Field[Any]"]:
    own = {one.name: one for one in fields(TrainingSettings)}
    shaping = {one.name for one in fields(Shaping)}
    yield from (one for name, one in own.items() if name not in shaping)
    yield from (one for name, one in own.items() if name in shaping)
    yield from fields(DataSettings)


def _default(one: "Field[Any]") -> str:
    return "" if one.default in (None, MISSING) else f"(default {str(one.default).lower()})"
