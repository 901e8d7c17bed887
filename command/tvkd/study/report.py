"""What a study's runs found, as results.jsonl, Markdown tables, and one HTML file with plots."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tvkd.evaluation.command import RESULT
from tvkd.evaluation.outcome import LOWER_IS_BETTER
from tvkd.study.plan import Arm, Run, Study
from tvkd.study.verdict import Items, Verdict, best_dpo, mean_of, verdict
from tvkd_client.preview_tables import titled_table

RESULTS, TABLE, PAGE = "results.jsonl", "table.md", "report.html"


@dataclass(frozen=True, slots=True)
class Finding:
    """A study's runs so far. `outcomes` has by outcome and arm the numbers of each seed."""

    study: Study
    outcomes: dict[str, dict[str, Items]]
    dpo: str | None
    verdicts: list[Verdict]

    @classmethod
    def of(cls, study: Study) -> "Finding":
        outcomes: dict[str, dict[str, Any]] = {}
        for run in study.runs:
            if (found := _outcome(run)) is None:
                continue
            benchmarks = {name: [mean] for name, mean in found["means"].items() if name not in found["items"]}
            for name, numbers in (found["items"] | benchmarks).items():
                outcomes.setdefault(name, {}).setdefault(run.arm.name, {})[run.seed] = np.array(numbers)
        results: Any = outcomes.get(study.outcome, {})
        reading = {arm.name for arm in study.arms if study.reads_teacher(arm)}
        dpo = best_dpo(study.arms, study.outcome, results, reading)
        verdicts = [
            verdict(arm, [other for other in study.arms if other.of == arm.name], dpo, study.outcome, results)
            for arm in study.arms
            if dpo is not None and not arm.control and arm.name in reading
        ]
        return cls(study, outcomes, dpo, verdicts)

    def mean(self, outcome: str, arm: Arm) -> str:
        items = self.outcomes.get(outcome, {}).get(arm.name)
        return "" if items is None else f"{mean_of(items):.3f}".replace("-", "−")


def write_report(study: Study) -> None:
    """Write all of it into the study's folder, and print the table."""
    finding = Finding.of(study)
    output = study.file.output
    output.mkdir(parents=True, exist_ok=True)
    (output / RESULTS).write_text("".join(_lines(study)), encoding="utf-8")
    (output / TABLE).write_text(markdown(finding), encoding="utf-8")
    from tvkd.study.page import page  # noqa: PLC0415 - matplotlib takes a second

    (output / PAGE).write_text(page(finding), encoding="utf-8")
    _print(finding, Console())
    print(f"written: {output / RESULTS}, {output / TABLE}, {output / PAGE}")


def shown_outcomes(finding: Finding) -> list[str]:
    """The outcome of the verdicts first, then the others."""
    main = finding.study.outcome
    return [main, *(name for name in finding.outcomes if name != main)]


def rows(finding: Finding) -> Iterator[list[str]]:
    """A row for each arm, and for each control: its means, and its differences where it is no control."""
    by_arm = {one.arm.name: one for one in finding.verdicts}
    for arm in finding.study.arms:
        own = by_arm.get(arm.name)
        to_dpo = str(own.to_dpo) if own and own.to_dpo else ""
        to_controls = [str(own.to_controls.get(name, "")) if own else "" for name in finding.study.file.controls]
        yield [arm.name, *(finding.mean(name, arm) for name in shown_outcomes(finding)), to_dpo, *to_controls]


def header(finding: Finding) -> list[str]:
    names = shown_outcomes(finding)
    return [
        "arm",
        *names,
        f"{names[0]} − {finding.dpo}, 95 %",
        *(f"− {c} control, 95 %" for c in finding.study.file.controls),
    ]


def markdown(finding: Finding) -> str:
    """A table to paste, and the verdicts under it."""
    head = header(finding)
    lines = [head, ["---"] * len(head), *rows(finding)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = "\n".join(f"- **{one.arm.name}**: {one.words}" for one in finding.verdicts)
    return f"{table}\n\n{said}\n\n{notes(finding)}\n"


def notes(finding: Finding) -> str:
    """How the numbers are to be read."""
    name = finding.study.outcome
    better = "lower" if name in LOWER_IS_BETTER else "higher"
    seeds = len(finding.study.file.seeds)
    return (
        f"Means over {seeds} seed{'s' if seeds > 1 else ''}. Verdicts are about {name}, of which {better} is better. "
        "Differences are paired by seed and by held-out pair or prompt; intervals are Student's, over seeds and items. "
        "Of 40 arms that do nothing, one is expected to beat DPO by such an interval; a gain beats the controls too."
    )


def _print(finding: Finding, console: Console) -> None:
    main = finding.study.outcome
    differences = 1 + len(finding.study.file.controls)

    def shown(cells: list[str]) -> list[str]:
        return [cell.replace("[", r"\[") for cell in (*cells[:2], *cells[-differences:])]

    table = titled_table(f"{main}, {len(finding.study.file.seeds)} seeds", *shown(header(finding)))
    for row in rows(finding):
        table.add_row(*shown(row))
    console.print(table)
    for one in finding.verdicts:
        console.print(f"{one.arm.name}: {one.words}", markup=False)


def _outcome(run: Run) -> dict[str, Any] | None:
    path = run.folder / RESULT
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def _lines(study: Study) -> Iterator[str]:
    """One JSON object a finished run: what it was, and its means."""
    for run in study.runs:
        if (found := _outcome(run)) is not None:
            line = {
                "arm": run.arm.name, "control": run.arm.control, "seed": run.seed, "settings": run.arm.settings,
                "seconds": round(found["seconds"], 1), **found["means"],
            }  # fmt: skip
            yield json.dumps(line, ensure_ascii=False) + "\n"


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """What a run logged while it trained."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
