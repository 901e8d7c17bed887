"""The tables of `tvkd preview`, and its warnings as sentences."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def tables(result: dict[str, Any]) -> Iterator[RenderableType]:
    """What is shown of the result, part by part."""
    yield _margins(result)
    yield _gradient(result)
    yield _cross_entropy(result)
    for name, reading in result["readings"].items():
        for warning in reading["warnings"]:
            yield Text.assemble((f"{name}: ", "bold"), warning)


def _margins(result: dict[str, Any]) -> Table:
    table = titled_table(
        f"The margin between chosen and rejected, before any training, {result['pairs']:,} pairs",
        "reading", "agrees with the label, 95 %", "r, length", f"r, teacher's {result['teacher_margin']}",
    )  # fmt: skip
    for name, reading in result["readings"].items():
        low, high = reading["interval"]
        table.add_row(
            name,
            f"{reading['agreement']:.1%} [{low:.1%}, {high:.1%}]".replace("[", r"\["),
            _number(reading["length_correlation"], "+.2f"),
            _number(reading["teacher_correlation"], "+.2f"),
        )
    length = result["length"]
    table.add_row(f"length alone: the {length['prefers']}", f"{length['agreement']:.1%}", "", "", style="dim")
    return table


def _gradient(result: dict[str, Any]) -> Table:
    title = "What α does to the gradient at the start, where DPO's weights are all ½"
    table = titled_table(title, "reading", "std, nats", "α", "effective pairs", "w < ¼", "flipped, w > ¾")
    for name, reading in result["readings"].items():
        table.add_row(
            name,
            f"{reading['deviation']:.3g}",
            _number(reading["alpha"], ".3g"),
            *(_number(reading[share], ".0%") for share in ("effective_pairs", "turned_down", "flipped")),
        )
    return table


def _cross_entropy(result: dict[str, Any]) -> Table:
    table = titled_table("Cross-entropy, nats a token", "model", "chosen", "rejected")
    for role, sides in result["cross_entropy"].items():
        table.add_row(role.replace("_", " "), *(f"{sides[side]:.3f}" for side in ("chosen", "rejected")))
    return table


def _number(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)


def titled_table(title: str, first: str, *numbers: str) -> Table:
    """An empty table with a column of names and columns of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
