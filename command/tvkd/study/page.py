"""The report of a study as one HTML file: tables, plots as SVG, and samples. It needs no network and runs no script."""

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tvkd.study.report import Finding, header, metrics_of, notes, rows
from tvkd.study.verdict import mean_of

CURVES = ("loss", "rewards/accuracies")
SAMPLES = 5
"""Samples of each arm that are shown, of the first seed."""

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left; white-space: nowrap }
figure { background: #fff; border-radius: .5rem; display: inline-block; margin: 0 1rem 1rem 0; max-width: 100%;
  padding: .5rem }
figure svg { height: auto; max-width: 100% }
pre { overflow-x: auto; white-space: pre-wrap }
"""


def page(finding: Finding) -> str:
    """The whole page. Everything that comes from data is escaped."""
    title = f"Study of {finding.study.path}"
    verdicts = "".join(f"<li><b>{escape(one.arm.name)}</b>: {escape(one.words)}</li>" for one in finding.verdicts)
    figures = "".join(f"<figure>{svg}</figure>" for svg in _figures(finding))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<ul>{verdicts}</ul>{_table(header(finding), list(rows(finding)))}<p>{escape(notes(finding))}</p>"
        f"<h2>Plots</h2>{figures}<h2>Samples</h2>{''.join(_samples(finding))}</html>\n"
    )


def _table(head: list[str], lines: list[list[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _figures(finding: Finding) -> Iterator[str]:
    main = finding.study.outcome
    if finding.outcomes.get("kl") and main in finding.outcomes:
        yield _drawn(
            lambda axes: _against_kl(axes, finding), "KL to the reference, nats a completion (x: a control)", main
        )
    for family in dict.fromkeys(arm.family for arm in finding.study.arms if arm.swept):
        setting = next(arm.swept[0] for arm in finding.study.arms if arm.family == family and arm.swept)
        yield _drawn(lambda axes, family=family: _sweep(axes, finding, family), setting, main)  # type: ignore[misc]
    for name in CURVES:
        if any(name in line for run in finding.study.runs for line in metrics_of(run.folder)):
            yield _drawn(lambda axes, name=name: _curves(axes, finding, name), "step", name)  # type: ignore[misc]


def _drawn(draw: Callable[[Any], None], x: str, y: str) -> str:
    # The same numbers make the same file: ids in it come from a hash that is salted, and no date is written.
    with mpl.rc_context({"svg.hashsalt": "tvkd", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            axes.legend(handles, labels, fontsize="small", frameon=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _against_kl(axes: Any, finding: Finding) -> None:
    outcome = finding.outcomes[finding.study.outcome]
    for arm in finding.study.arms:
        if arm.name not in outcome or arm.name not in finding.outcomes["kl"]:
            continue
        x, y = mean_of(finding.outcomes["kl"][arm.name]), mean_of(outcome[arm.name])
        axes.plot(x, y, marker="x" if arm.control else "o", linestyle="", color="0.5" if arm.control else None)
        if arm.control:
            continue
        axes.annotate(arm.name, (x, y), fontsize="x-small", xytext=(4, 4), textcoords="offset points")


def _sweep(axes: Any, finding: Finding, family: str) -> None:
    outcome = finding.outcomes.get(finding.study.outcome, {})
    for control in (None, *finding.study.file.controls):
        arms = [arm for arm in finding.study.arms if arm.family == family and arm.control == control and arm.swept]
        points = sorted((arm.swept[1], mean_of(outcome[arm.name])) for arm in arms if arm.swept and arm.name in outcome)
        if points:
            axes.plot(
                *zip(*points, strict=True), marker="o", label=family if control is None else f"its {control} control"
            )
    if finding.dpo:
        axes.axhline(mean_of(outcome[finding.dpo]), color="0.5", linestyle="--", label=finding.dpo)


def _curves(axes: Any, finding: Finding, name: str) -> None:
    for arm in finding.study.arms:
        if arm.control:
            continue
        by_step = defaultdict(list)
        for run in finding.study.runs:
            if run.arm.name == arm.name:
                for line in metrics_of(run.folder):
                    if name in line:
                        by_step[line["step"]].append(line[name])
        if by_step:
            axes.plot(list(by_step), [np.mean(numbers) for numbers in by_step.values()], marker=".", label=arm.name)


def _samples(finding: Finding) -> Iterator[str]:
    seed = finding.study.file.seeds[0]
    for run in finding.study.runs:
        path = run.folder / "samples.jsonl"
        if run.seed != seed or not path.exists() or run.arm.control:
            continue
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:SAMPLES]]
        if lines:
            shown = [
                [_said(line["prompt"]), line["completion"], f"{line.get('reward', line['kl']):.2f}"] for line in lines
            ]
            last = "reward" if "reward" in lines[0] else "KL"
            yield f"<h3>{escape(run.arm.name)}</h3>{_table(['prompt', 'completion', last], shown)}"


def _said(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " / ".join(f"{m['role']}: {m['content']}" for m in prompt)
