"""`tvkd.json` in the output folder and in each checkpoint: what a run is, and whether another may go on with it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from tvkd_client.config import TVKDConfig
from tvkd_client.roles import Sources
from tvkd_client.source import teacher_of
from tvkd_shared.errors import InvalidRequest, StoreUnavailable

FILE = "tvkd.json"
_PACKAGES = ("tvkd", "trl", "transformers", "torch", "peft", "datasets")
_OF_A_MODEL = ("name", "dtype", "quantization", "engine", "engine_version")


class RunRecord(TrainerCallback):
    """Writes `tvkd.json` where training begins and beside each checkpoint: objective, models, data, versions.

    `rows` are the data sets as they were given, by split. Places are written without credentials.
    """

    def __init__(self, args: TVKDConfig, sources: Sources, rows: Mapping[str, Any]) -> None:
        self._args, self._sources = args, sources
        self._given = {split: len(data) for split, data in rows.items() if isinstance(data, Dataset)}
        self._content: dict[str, Any] = {
            "objective": objective_of(args),
            "models": {role: {"id": source.teacher_id} for role, source in sources.items()},
        }

    def check(self, resumed: str | bool | None) -> None:
        """Raises InvalidRequest when the checkpoint that is resumed was made with another model, objective or reading.

        With `accept_changed` the record tells both, and up to which step the former was in use.
        """
        if not resumed:
            return
        output = str(self._args.output_dir)
        found: Any = get_last_checkpoint(output) if resumed is True else resumed  # type: ignore[no-untyped-call]
        try:
            before = json.loads((Path(str(found)) / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # a checkpoint of TRL's own trainer, or none: transformers says so
        self._content["earlier"] = before.get("earlier", [])
        changes = list(_changes(before, self._content))
        if changes and not self._args.accept_changed:
            raise InvalidRequest(
                f"checkpoint {found} was trained with {'; '.join(changes)}: set the same again, or accept_changed"
            )
        if changes:
            state = json.loads((Path(str(found)) / "trainer_state.json").read_text(encoding="utf-8"))
            former = {name: before[name] for name in ("objective", "models")}
            self._content["earlier"] = [*self._content["earlier"], {"up_to_step": state["global_step"], **former}]

    def complete(self, student: str, pairs: Mapping[str, Dataset]) -> None:
        """Adds what is known once the data are tokens and the models were found sound."""
        self._content |= {
            "models": {role: self._model(role) for role in self._sources},
            "student": student,
            "data": {
                split: {"rows": given, "pairs": len(pairs[split]), "dropped": given - len(pairs[split])}
                for split, given in self._given.items()
            },
            "versions": {package: version(package) for package in _PACKAGES},
        }

    def add_to_card(self) -> None:
        """The same for people, in the model card; without places, which say nothing to its readers."""
        models = {
            role: ", ".join(str(model[key]) for key in ("name", "id", *_OF_A_MODEL[1:]) if model.get(key))
            for role, model in self._content["models"].items()
        }
        groups = {
            "objective": self._content["objective"],
            **self._content["data"],
            "versions": self._content["versions"],
        }
        rows = models | {
            name: ", ".join(f"{key} {what}" for key, what in group.items()) for name, group in groups.items()
        }
        table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows.items())])
        with (Path(str(self._args.output_dir)) / "README.md").open("a", encoding="utf-8") as card:
            card.write(f"\n\n## What it was trained with\n\n{table}\n\n`{FILE}` has the same for programs.\n")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._write(Path(str(args.output_dir)))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            self._write(checkpoint)

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")

    def _model(self, role: Any) -> dict[str, Any]:
        source, place = self._sources[role], getattr(self._args, role)
        model = {"id": source.teacher_id, "place": None if place is None else without_credentials(place)}
        with suppress(StoreUnavailable):  # a store whose provenance is lost still has the values
            if known := teacher_of(source):
                model |= {key: getattr(known, key) for key in _OF_A_MODEL}
        return model


def objective_of(args: TVKDConfig) -> dict[str, Any]:
    """The objective and what it reads: what is unused may change."""
    if args.objective == "tvkd":
        used = {"alpha": args.alpha} | (asdict(args.shaping) if args.alpha else {})
    else:
        used = {"strength": args.strength}
    if args.objective == "token":
        used |= {"center": args.center, "dpo_weight": args.dpo_weight}
    if args.teacher_tokenizer is not None and args.reads("teacher"):
        used |= {"teacher_tokenizer": "the teacher's"}
    return {"objective": args.objective, **used, "beta": args.beta, "loss_type": args.loss_type}


def without_credentials(place: str) -> str:
    """A place without what a URL may hold of secrets: user, password, query and fragment."""
    if "://" not in place:
        return place
    url = urlsplit(place)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What is another in a run that goes on, each in the words of the settings."""
    names = ["objective"]
    if before["objective"]["objective"] == now["objective"]["objective"]:
        names = list(before["objective"] | now["objective"])
    for name in names:
        was, is_now = (content["objective"].get(name) for content in (before, now))
        if was != is_now:
            yield f"{name} {was}, not {is_now}"
    for role in before["models"] | now["models"]:
        was, is_now = (content["models"].get(role) for content in (before, now))
        # Reference log-probs that are stored are checked to be those that TRL would compute.
        if role == "reference" and not (was and is_now):
            continue
        if (was or {}).get("id") != (is_now or {}).get("id"):
            yield f"{role} {_named(was)}, not {_named(is_now)}"


def _named(model: dict[str, Any] | None) -> str:
    return "none" if model is None else " ".join(str(model[key]) for key in ("name", "id") if key in model)
