"""`tvkd preview`: what each reading of a filled store would do to a data set's pairs, before any training."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator
from rich.console import Console

from tvkd_client.dataset_flags import DatasetFlags
from tvkd_client.distributions import by_length, histogram
from tvkd_client.margins import LOG_PROB, READINGS, RELATIVE_READINGS, length_agreement, statistics_of
from tvkd_client.preview_tables import tables
from tvkd_client.source import StoreSource, ValueSource, source_at
from tvkd_shared.ending import Ending, declared_eos
from tvkd_shared.errors import InvalidRequest, NoStore, NotCached
from tvkd_shared.settings import shaping_command
from tvkd_shared.shaping import POTENTIALS, Shaping, finite
from tvkd_shared.stack import Stack
from tvkd_shared.value import Float64

if TYPE_CHECKING:
    import datasets

_Flags: Any = shaping_command("tvkd preview")


class Preview(_Flags, DatasetFlags, cli_prog_name="tvkd preview"):  # type: ignore[misc]
    """Show what the teacher's values say of a data set's pairs, from a filled store and with no model.

    Without a flag that chooses a shaping, several usual readings are compared.
    """

    tokenizer: str = Field(description="the student's tokenizer: a directory, or a hub id (only then the network)")
    store: str = Field(description="the filled store, a folder or s3://…")
    teacher_id: str | None = Field(None, description="which teacher, when the store holds several")
    teacher_reference: str | None = Field(
        None, description="the model that the teacher's DPO started from, a URL or a store"
    )
    teacher_reference_id: str | None = Field(None, description="which model, when that store holds several")
    reference: str | None = Field(None, description="the student's reference, a URL or a store")
    reference_id: str | None = Field(None, description="which model, when that store holds several")
    alpha: float | None = Field(
        None, description="α of the loss; by default one over the standard deviation of each reading's margin"
    )
    json_: bool = Field(False, alias="json", description="print JSON, for programs")
    html: Path | None = Field(None, description="also write one HTML file with plots and pairs, which needs no network")

    @field_validator("alpha")
    @classmethod
    def _check_alpha(cls, alpha: float | None) -> float | None:
        return None if alpha is None else finite("alpha", alpha)

    def run(self) -> int:
        """Print the tables, or JSON, and write the file asked for. Raises the errors of `tvkd_shared.errors`."""
        if self.html and not self.html.parent.is_dir():
            raise InvalidRequest(f"--html {self.html} is in a folder that does not exist; make it first")
        readings = self._readings()
        temperatures = sorted({tau for how in readings.values() for tau in how.temperatures})
        sources = self._sources(temperatures)
        import datasets  # noqa: PLC0415 - with TRL it takes seconds, and a wrong folder is known before

        from tvkd_client.preference_tokens import load_tokenizer, tokenize_preferences  # noqa: PLC0415
        from tvkd_client.token_rows import TOKEN_COLUMNS  # noqa: PLC0415

        datasets.disable_progress_bars()
        tokenizer = load_tokenizer(self.tokenizer)
        rows = tokenize_preferences(self.pairs(), tokenizer, str(self.dataset)).select_columns(list(TOKEN_COLUMNS))
        ending = Ending(tokenizer, declared_eos(self.tokenizer)).of
        try:
            scores = scores_of(rows, sources, readings, ending)
        except NotCached:
            self._check_complete(sources, rows, temperatures)  # says how many of all are missing
            raise
        result = {"teacher_id": sources["teacher"].teacher_id, **summary(scores, list(sources), self.alpha)}
        if self.json_:
            print(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False))
        else:
            console = Console()
            for part in tables(result):
                console.print(part)
        if self.html:
            from tvkd_client.preview_report import pairs_to_show, report, rows_to_show  # noqa: PLC0415

            margins = {
                name: np.subtract(*scores["teacher" if name == LOG_PROB else name]) for name in result["readings"]
            }
            numbers = rows_to_show(margins, scores["length"].sum(0))
            pairs = pairs_to_show(rows, numbers, sources=sources, readings=readings, ending=ending, tokenizer=tokenizer)
            self.html.write_text(report(str(self.dataset), result, margins, pairs), encoding="utf-8")
        return 0

    def _readings(self) -> dict[str, Shaping]:
        based = self.teacher_reference is not None or self.reference is not None
        given = {choice.name for choice in fields(Shaping)} & self.model_fields_set
        if not given:
            return READINGS | (RELATIVE_READINGS if based else {})
        shaping: Shaping = self.shaping
        if POTENTIALS[shaping.potential].relative and not based:
            raise InvalidRequest(f"--potential {shaping.potential} needs --teacher-reference, or --reference")
        chosen = [
            f"{choice.name} {getattr(shaping, choice.name)}" for choice in fields(Shaping) if choice.name in given
        ]
        return {", ".join(chosen): shaping}

    def _sources(self, temperatures: list[float]) -> dict[str, ValueSource]:
        """The source of each role that is named, opened; the teacher is first."""
        sources: dict[str, ValueSource] = {}
        with self._said_how_to_fill(self.store, temperatures):
            sources["teacher"] = StoreSource(self.store, temperatures, self.teacher_id)
            teacher = sources["teacher"].teacher_id
        for role in ("teacher_reference", "reference"):
            place = getattr(self, role)
            if place is None:
                continue
            with self._said_how_to_fill(place, [1.0]):
                sources[role] = source_at(place, teacher_id=getattr(self, f"{role}_id"))
                if sources[role].teacher_id == teacher:
                    raise InvalidRequest(
                        f"teacher and {role} are one model, {teacher}: every advantage would be 0; name the model "
                        f"that it started from with --{role.replace('_', '-')}-id"
                    )
        return sources

    def _check_complete(
        self, sources: dict[str, ValueSource], rows: "datasets.Dataset", temperatures: list[float]
    ) -> None:
        from tvkd_client.survey import batches  # noqa: PLC0415

        for role, source in sources.items():
            if not isinstance(source, StoreSource):
                continue
            if missing := sum(source.missing(*some.of(role)) for some in batches(rows)):
                needed = temperatures if role == "teacher" else [1.0]
                with self._said_how_to_fill(source.place, needed):
                    raise NotCached(
                        f"store {source.place} lacks {missing:,} of {2 * len(rows):,} completions of {role} "
                        f"{source.teacher_id}"
                    )

    @contextmanager
    def _said_how_to_fill(self, place: str, temperatures: list[float]) -> Iterator[None]:
        """Puts the command that fills the store behind an error that says that something is not in it."""
        try:
            yield
        except (NoStore, NotCached) as error:
            flags = ["tokenizer", *DatasetFlags.model_fields]
            words = [w for name in flags if (to := getattr(self, name)) for w in (f"--{name.replace('_', '-')}", to)]
            if temperatures != [1.0]:
                words += ["--temperatures", ",".join(map(str, temperatures))]
            command = f"tvkd prefetch --model MODEL --store {shlex.join([place, *words])}"
            raise type(error)(f"{error.message.partition(';')[0]}; fill it with: {command}") from error


def scores_of(
    rows: "datasets.Dataset",
    sources: dict[str, ValueSource],
    readings: dict[str, Shaping],
    ending: Callable[[Any], int | None],
) -> dict[str, Float64]:
    """By name the numbers of each completion, float64 [2, N], chosen and rejected.

    Those of each reading, S; of each role, Σ log π; and "length", T.
    """
    from tvkd_client.completions import Completions  # noqa: PLC0415
    from tvkd_client.processes import processes  # noqa: PLC0415

    def score(columns: dict[str, Any]) -> dict[str, list[Float64]]:
        some = Completions(columns)
        stacks = {role: Stack(source.fetch(*some.of(role))) for role, source in sources.items()}
        base = stacks.get("teacher_reference", stacks.get("reference"))
        ends = list(map(ending, some.of("teacher")[1]))
        found = {role: stack.log_probs() for role, stack in stacks.items()}
        found |= {name: stacks["teacher"].shaping(how, ends, base) for name, how in readings.items()}
        found["length"] = stacks["teacher"].lengths_N.astype(np.float64)
        return {name: list(of_both.reshape(2, -1).T) for name, of_both in found.items()}

    scored = rows.map(
        score, batched=True, num_proc=processes(len(rows)), remove_columns=rows.column_names,
        keep_in_memory=True, load_from_cache_file=False, new_fingerprint="scores",
    )  # fmt: skip
    names = scored.column_names
    return {name: scored.data.column(name).combine_chunks().flatten().to_numpy().reshape(-1, 2).T for name in names}


def summary(scores: dict[str, Float64], roles: list[str], alpha: float | None) -> dict[str, Any]:
    """What is printed, from the numbers that `scores_of` gives."""
    margins = {name: chosen - rejected for name, (chosen, rejected) in scores.items()}
    lengths = margins.pop("length")
    of_roles = {role: margins.pop(role) for role in roles}
    base = of_roles.get("teacher_reference", of_roles.get("reference"))
    teacher = of_roles["teacher"] - (0.0 if base is None else base)
    margins[LOG_PROB] = of_roles["teacher"]
    better, share = length_agreement(lengths)
    return {
        "pairs": len(lengths),
        "teacher_margin": "log-prob" if base is None else "implicit reward",
        "length": {"prefers": better, "agreement": share},
        "cross_entropy": {
            role: dict(
                zip(("chosen", "rejected"), (-scores[role].sum(1) / scores["length"].sum(1)).tolist(), strict=True)
            )
            for role in roles
        },
        "readings": {
            name: {
                **asdict(statistics_of(of_pairs, lengths, teacher, alpha)),
                "histogram": histogram(of_pairs),
                "by_length": by_length(of_pairs, lengths),
            }
            for name, of_pairs in margins.items()
        },
    }
