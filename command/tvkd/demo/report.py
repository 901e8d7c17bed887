"""What the demo found: the summary that is written as JSON, and the tables that are printed of it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tvkd.demo.training import HeldOut
from tvkd_client.margins import MarginStatistics
from tvkd_client.preview_tables import titled_table
from tvkd_shared.shaping import Shaping


@dataclass(frozen=True, slots=True)
class Fill:
    """One `tvkd prefetch` of all pairs: its seconds, and what the server's counters say the teacher did meanwhile."""

    seconds: float
    computed_completions: int
    teacher_tokens: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that the demo measured. Bytes are a completion token; seconds are wall-clock."""

    teacher_id: str
    teacher_name: str
    pairs: int
    sequences: int
    tokens: int
    bytes_recent: float
    bytes_sealed: float
    bytes_alternatives: dict[str, float]
    fills: tuple[Fill, Fill]
    readings: dict[str, MarginStatistics]
    shaping: Shaping
    alpha: float
    train_pairs: int
    heldout_pairs: int
    heldout: dict[str, HeldOut]
    seconds: dict[str, float]

    def write(self, path: Path) -> None:
        path.write_text(
            json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def show(summary: Summary, console: Console) -> None:
    console.print(f"\nTeacher [bold]{summary.teacher_name}[/], id {summary.teacher_id}")
    for table in tables(summary):
        console.print()
        console.print(table)
    r = summary.shaping
    temperature = f" at τ {r.temperature:g}" if r.reads_temperature else ""
    console.print(
        f"\nTVKD here: potential {r.potential}{temperature}, γ {r.gamma:g}, terminal {r.terminal}, "
        f"aggregate {r.aggregate}, α {summary.alpha:.3g} = 1 / (standard deviation of the margin)."
    )
    console.print(
        f"[bold]A toy run: it proves the plumbing, not the paper.[/] A student of a few layers, {summary.train_pairs} "
        "made-up training pairs and a 4-bit teacher cannot show a gain, and differences within ± are noise. "
        "What to look at is the control: shaping that helps must beat its own shuffle."
    )


def tables(summary: Summary) -> Iterator[Table]:
    yield _bytes(summary)
    yield _fills(summary)
    yield _readings(summary)
    yield _heldout(summary)


def _bytes(summary: Summary) -> Table:
    title = f"{summary.sequences:,} sequences, {summary.tokens:,} tokens in the store"
    table = titled_table(title, "Kept for each token", "bytes", "against the store")
    rows = {
        "tvkd store, sealed": summary.bytes_sealed,
        "tvkd store, not yet sealed": summary.bytes_recent,
        "top-50 JSON lines": summary.bytes_alternatives["top_50_json_lines"],
        "full logits, bfloat16": summary.bytes_alternatives["full_bf16_logits"],
    }
    for name, size in rows.items():
        table.add_row(name, f"{size:,.1f}" if size < 100 else f"{size:,.0f}", f"{size / summary.bytes_sealed:,.1f} ×")
    return table


def _fills(summary: Summary) -> Table:
    table = titled_table(
        f"tvkd prefetch of {summary.pairs:,} pairs", "Fill", "seconds", "completions computed", "teacher tokens"
    )
    for name, fill in zip(("first", "second"), summary.fills, strict=True):
        table.add_row(name, f"{fill.seconds:.1f}", f"{fill.computed_completions:,}", f"{fill.teacher_tokens:,}")
    return table


def _readings(summary: Summary) -> Table:
    title = f"The margin between chosen and rejected, before any training, {summary.pairs:,} pairs"
    table = titled_table(title, "Shaping", "agrees with the label", "correlation with length")
    for name, statistics in summary.readings.items():
        correlation = "–" if statistics.length_correlation is None else f"{statistics.length_correlation:+.2f}"
        table.add_row(name, f"{statistics.agreement:.0%}", correlation)
    return table


def _heldout(summary: Summary) -> Table:
    title = f"Held out, {summary.heldout_pairs} pairs: the student's own reward, shaping left out"
    table = titled_table(title, "Trained with", "reward accuracy", "margin", "loss")
    for name, run in summary.heldout.items():
        table.add_row(name, f"{run.accuracy:.1%} ± {run.error:.1%}", f"{run.margin:+.3f}", f"{run.loss:.4f}")
    return table
