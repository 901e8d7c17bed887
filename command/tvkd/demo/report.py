"""What the demo measured itself: the summary that is written as JSON, and the tables that are printed of it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from tvkd_client.preview_tables import titled_table


@dataclass(frozen=True, slots=True)
class Fill:
    """One `tvkd prefetch` of all pairs: its seconds, and what the server's counters say the teacher did meanwhile."""

    seconds: float
    computed_completions: int
    teacher_tokens: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What the demo measured beside preview and study. Bytes are a completion token; seconds are wall-clock.

    `heldout_cross_entropy` has teacher and student, chosen and rejected, in nats a token, before any training.
    """

    teacher_id: str
    teacher_name: str
    pairs: int
    sequences: int
    tokens: int
    bytes_recent: float
    bytes_sealed: float
    bytes_alternatives: dict[str, float]
    fills: tuple[Fill, Fill]
    heldout_pairs: int
    seconds: dict[str, float]
    heldout_cross_entropy: dict[str, dict[str, float]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.write_text(
            json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def bytes_table(summary: Summary) -> Table:
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


def fills_table(summary: Summary) -> Table:
    table = titled_table(
        f"tvkd prefetch of {summary.pairs:,} pairs", "Fill", "seconds", "completions computed", "teacher tokens"
    )
    for name, fill in zip(("first", "second"), summary.fills, strict=True):
        table.add_row(name, f"{fill.seconds:.1f}", f"{fill.computed_completions:,}", f"{fill.teacher_tokens:,}")
    return table


def cross_entropy_table(summary: Summary) -> Table:
    title = f"Cross-entropy on {summary.heldout_pairs} held-out pairs before any training, nats a token"
    table = titled_table(title, "model", "chosen", "rejected")
    for model, sides in summary.heldout_cross_entropy.items():
        table.add_row(model, f"{sides['chosen']:.2f}", f"{sides['rejected']:.2f}")
    return table
