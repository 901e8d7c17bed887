"""`tvkd preview --html`: one file that shows all of the JSON, and some pairs token by token. It asks no network."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from tvkd_client.margins import LOG_PROB
from tvkd_client.source import ValueSource
from tvkd_client.survey import batches
from tvkd_shared.objective import starting_weight
from tvkd_shared.record import Record
from tvkd_shared.shaping import Shaping, log_probs
from tvkd_shared.value import Float64

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 40_000
"""Tokens of the pairs in one file: a few megabytes, which a browser opens at once."""

OF_EACH, BY_CHANCE = 12, 12
"""Pairs by each order of each reading, and pairs by chance."""


def rows_to_show(margins: dict[str, Float64], tokens_N: Float64) -> list[int]:
    """Rows, ascending: by each reading those of the largest margins and the strongest disagreements; some by chance.

    They are taken turn by turn, until they have MOST_TOKENS of the pairs' `tokens_N`; one pair is always there.
    """
    orders = [np.random.default_rng(0).permutation(len(tokens_N))[:BY_CHANCE]]
    for m in margins.values():
        orders += [np.argsort(-abs(m), kind="stable")[:OF_EACH], np.argsort(m, kind="stable")[:OF_EACH]]
    rows: dict[int, None] = {}
    left = MOST_TOKENS
    for turn in range(max(OF_EACH, BY_CHANCE)):
        for row in (int(order[turn]) for order in orders if turn < len(order)):
            if row not in rows and (tokens_N[row] <= left or not rows):
                rows[row] = None
                left -= int(tokens_N[row])
    return sorted(rows)


def pairs_to_show(
    rows: "datasets.Dataset",
    numbers: Sequence[int],
    *,
    sources: dict[str, ValueSource],
    readings: dict[str, Shaping],
    ending: Callable[[Any], int | None],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[dict[str, Any]]:
    """The pairs of these row numbers: tokens as text, and ψ of each token by each reading."""
    pairs = []
    for number in numbers:
        (pair,) = batches(rows.select([number]))
        (prompt, _), sides = pair.of("teacher")
        records = {role: source.fetch(*pair.of(role)) for role, source in sources.items()}
        bases: Sequence[Record | None] = records.get("teacher_reference", records.get("reference", [None, None]))
        per_side = list(zip(sides, records["teacher"], bases, strict=True))
        psi = {
            name: [how.psi(record, kept=record.length, end=ending(ids), base=base) for ids, record, base in per_side]
            for name, how in readings.items()
        }
        psi[LOG_PROB] = [log_probs(record, record.length) for _, record, _ in per_side]
        pairs.append(
            {
                "row": number,
                "prompt": str(tokenizer.decode(prompt)),
                "words": [[str(tokenizer.decode([token])) for token in ids] for ids in sides],
                "psi": {name: [np.round(psi_T, 4).tolist() for psi_T in both] for name, both in psi.items()},
            }
        )
    return pairs


def report(title: str, result: dict[str, Any], margins: dict[str, Float64], pairs: list[dict[str, Any]]) -> str:
    """The file. `result` is what `--json` prints, and `margins` are all pairs', by reading.

    No text of the data becomes markup: all of it is in one JSON block, which the file's own script reads, and the
    policy lets no other script run.
    """
    for pair in pairs:
        readings = {name: (float(m[pair["row"]]), result["readings"][name]["alpha"]) for name, m in margins.items()}
        pair["margins"] = {name: m for name, (m, _) in readings.items()}
        pair["weights"] = {
            name: None if alpha is None else float(starting_weight(alpha, m)) for name, (m, alpha) in readings.items()
        }
    data = json.dumps({"title": title, "result": result, "pairs": pairs}, allow_nan=False).replace("<", "\\u003c")
    drawing, own = files("tvkd_shared") / "drawing", files("tvkd_client") / "report"
    style = "".join(
        (folder / name).read_text(encoding="utf-8")
        for folder, name in ((drawing, "base.css"), (drawing, "tokens.css"), (own, "report.css"))
    )
    script = (drawing / "tokens.js").read_text(encoding="utf-8") + (own / "report.js").read_text(encoding="utf-8")
    page = Template((own / "report.html").read_text(encoding="utf-8"))
    return page.substitute(
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
        style=style,
        script=script,
        data=data,
    )


def _hash(source: str) -> str:
    """The one inline source that a Content-Security-Policy lets in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
