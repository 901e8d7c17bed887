"""What a study is: its file, and the runs that come of it."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from tvkd_client.training_settings import TrainingSettings
from tvkd_shared.errors import InvalidRequest, TVKDError
from tvkd_shared.shaping import POTENTIALS

DPO = "DPO"

Control = Literal["shuffled", "length"]
Settings = dict[str, Any]

FIXED = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 5, "report_to": "none", "quiet": True}
"""Settings that a run has unless the study's file says otherwise: a run that is stopped is run again from its start."""

OWN = frozenset({"seed", "data_seed", "output_dir", "resume_from_checkpoint"})
"""Settings that the study itself gives to each run."""


class HeldOutFile(BaseModel):
    """What students are measured on; by default the test split of the data set that they train on."""

    model_config = ConfigDict(extra="forbid")
    dataset_name: str | None = None
    split: str | None = None
    pairs: PositiveInt | None = Field(None, description="how many of the first pairs; by default all")
    samples: NonNegativeInt = 128
    max_new_tokens: PositiveInt = 128
    beta: float | None = Field(None, gt=0, description="β of the implicit reward; by default that of the base")
    reward: str | None = None
    tasks: list[str] = []
    tasks_folder: str | None = None
    tasks_limit: PositiveInt | None = None


class StudyFile(BaseModel):
    """A study's YAML file."""

    model_config = ConfigDict(extra="forbid")
    base: Settings | str = Field(description="settings of `tvkd train`, or the path of its YAML file")
    arms: dict[str, Settings] = Field(min_length=1, description="settings over the base, by the arm's name")
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    controls: list[Control] = ["shuffled", "length"]
    held_out: HeldOutFile = HeldOutFile()
    outcome: str | None = Field(None, description="the outcome that verdicts are about")
    output: Path = Path("study-output")
    keep_models: bool = False

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: settings of `tvkd train`, and whose control it is where it is one.

    swept   the setting of a sweep and its value, None for an arm that is not part of one
    family  the name in the study's file, the same for all arms of a sweep
    """

    name: str
    settings: Settings
    family: str
    swept: tuple[str, float] | None = None
    control: Control | None = None
    of: str | None = None

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w=.+-]+", "-", self.name).strip("-")


@dataclass(frozen=True, slots=True)
class Run:
    """One training and its evaluation, in a folder of its own."""

    arm: Arm
    seed: int
    folder: Path


class Study:
    """A study's file, read and checked. Raises InvalidRequest, one line, for what is wrong in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        content = _yaml(path)
        try:
            self.file = StudyFile.model_validate(content)
        except ValidationError as error:
            faults = ("{}: {}".format(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors())
            raise InvalidRequest(f"{path}: {'; '.join(faults)}") from error
        self.base: Settings = _yaml(self.file.base) if isinstance(self.file.base, str) else self.file.base
        self.arms = list(self._arms())
        _check_names(self.arms)

    @property
    def runs(self) -> list[Run]:
        """All runs, a seed after the other, so that a study that is stopped has whole seeds to compare."""
        return [
            Run(arm, seed, self.file.output / "runs" / arm.folder / f"seed-{seed}")
            for seed, arm in itertools.product(self.file.seeds, self.arms)
        ]

    @property
    def outcome(self) -> str:
        """The outcome that verdicts are about: the file's, or else the reward where there is one."""
        return self.file.outcome or ("reward" if self.file.held_out.reward else "reward_accuracy")

    def settings_of(self, run: Run) -> Settings:
        """Everything that a run is trained with."""
        own = {"seed": run.seed, "data_seed": run.seed, "output_dir": str(run.folder)}
        return FIXED | self.base | run.arm.settings | own

    def _arms(self) -> Iterator[Arm]:
        given = [arm for name, settings in self.file.arms.items() for arm in _swept(name, settings)]
        if all(self.reads_teacher(arm) for arm in given):
            yield Arm(DPO, {"objective": "tvkd", "alpha": 0.0}, DPO)
        for arm in given:
            yield arm
            if self.reads_teacher(arm):
                for control in self.file.controls:
                    yield Arm(f"{arm.name}, {control}", arm.settings, arm.family, arm.swept, control, arm.name)

    def reads_teacher(self, arm: Arm) -> bool:
        """Whether an arm's objective reads a teacher; it is DPO where it does not."""
        if mistaken := OWN & arm.settings.keys():
            raise InvalidRequest(f"arm {arm.name} sets {', '.join(sorted(mistaken))}, which the study gives each run")
        settings = own_settings(self.base | arm.settings, arm.name)
        if settings.reads("teacher") and self.file.controls:
            self._check_controllable(arm, settings)
        return settings.reads("teacher")

    def _check_controllable(self, arm: Arm, settings: TrainingSettings) -> None:
        if settings.teacher_tokenizer is not None:
            raise InvalidRequest(f"arm {arm.name}: there are no controls with teacher_tokenizer yet; set controls: []")
        if is_relative(settings) and settings.teacher_reference is None and settings.reference is None:
            raise InvalidRequest(
                f"arm {arm.name}: its controls need the advantage before training; set teacher_reference, or a stored "
                "reference, or controls: []"
            )


def is_relative(settings: Any) -> bool:
    """Whether an arm reads the teacher's advantage, not the teacher's values alone."""
    return settings.objective != "tvkd" or POTENTIALS[settings.potential].relative


def own_settings(settings: Settings, name: str) -> TrainingSettings:
    """tvkd's own settings among those of an arm. Raises InvalidRequest for one that has no meaning."""
    known = {key: value for key, value in settings.items() if key in TrainingSettings.__dataclass_fields__}
    try:
        return TrainingSettings(**known)
    except (TVKDError, TypeError, ValueError) as error:
        raise InvalidRequest(f"arm {name}: {error}") from error


def _swept(name: str, settings: Settings) -> Iterator[Arm]:
    """The arm, or one for each value of its `sweep`, a mapping of one setting to its values."""
    sweep = settings.get("sweep")
    plain = {key: value for key, value in settings.items() if key != "sweep"}
    if sweep is None:
        yield Arm(name, plain, name)
        return
    if not isinstance(sweep, dict) or len(sweep) != 1 or not all(isinstance(v, list) and v for v in sweep.values()):
        raise InvalidRequest(f"arm {name}: sweep is one setting and a list of its values, such as {{alpha: [0.1, 1]}}")
    ((setting, values),) = sweep.items()
    for value in values:
        yield Arm(f"{name}, {setting}={value}", plain | {setting: value}, name, (setting, value))


def _check_names(arms: list[Arm]) -> None:
    seen: dict[str, str] = {}
    for arm in arms:
        if arm.folder in seen or not arm.folder:
            raise InvalidRequest(f"arms {seen.get(arm.folder)!r} and {arm.name!r} would have one folder; rename one")
        seen[arm.folder] = arm.name


def _yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InvalidRequest(f"{path} is not a mapping of settings")
    return content
