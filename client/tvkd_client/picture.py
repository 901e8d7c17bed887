"""The picture of one pair: its tokens on the colour of their shaping ψ_t, the number under each, and the sums."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from tvkd_shared.shaping import Shaping
from tvkd_shared.value import Float64

FILE_COLUMNS = 96
"""Largest width of a picture in characters: what a README shows without shrinking it."""

# Red below zero, blue above, near-white at zero: told apart with any colour vision (ColorBrewer's RdBu).
_SCALE = [
    (178, 24, 43),
    (239, 138, 98),
    (253, 219, 199),
    (247, 247, 247),
    (209, 229, 240),
    (103, 169, 207),
    (33, 102, 172),
]


@dataclass(frozen=True, slots=True)
class TokenShaping:
    """One completion: its tokens as text, and ψ of each, float64 [T]."""

    tokens: list[str]
    psi_T: Float64  # noqa: N815 - its shape


def draw(prompt: str, chosen: TokenShaping, rejected: TokenShaping, shaping: Shaping) -> RenderableType:
    """The prompt, both completions in coloured cells, the scale, and the sums."""
    limit = float(max(np.abs(chosen.psi_T).max(), np.abs(rejected.psi_T).max())) or 1.0
    parts: list[RenderableType] = [Text(prompt.strip(), style="italic"), Text()]
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        parts += [Text(name, style="bold"), _Cells(side, limit), Text()]
    return Group(*parts, _legend(limit, shaping), Text(), _sums(chosen, rejected))


def write(picture: RenderableType, *, html: Path | None = None, svg: Path | None = None) -> None:
    """Write the picture to the files that are named, as wide as it needs, at most FILE_COLUMNS."""
    paper = Console(
        record=True, width=_width(picture), color_system="truecolor", force_terminal=True, file=io.StringIO()
    )
    paper.print(picture)
    for path, text in ((html, _html), (svg, _svg)):
        if path is not None:
            path.write_text(text(paper), encoding="utf-8")


class _Cells:
    """Tokens over their ψ, as many to a line as fit."""

    def __init__(self, side: TokenShaping, limit: float) -> None:
        self._side, self._limit = side, limit

    def __rich_console__(self, console: Console, options: object) -> "list[Text]":
        lines: list[Text] = []
        words, numbers = Text(), Text()
        for token, psi in zip(map(_visible, self._side.tokens), self._side.psi_T, strict=True):
            number, style = f"{psi:+.2f}", shade(psi / self._limit)
            width = max(Text(token).cell_len, len(number)) + 2
            if words and words.cell_len + width > console.width:
                lines += [words, numbers, Text()]
                words, numbers = Text(), Text()
            padding = " " * (width - Text(token).cell_len - 2)
            words.append(f" {token}{padding} ", style + Style(bold=True)).append(" ")
            numbers.append(f" {number:<{width - 2}} ", style).append(" ")
        return [*lines, words, numbers]


def shade(share: float) -> Style:
    """Background for ψ as a share of the largest |ψ|, −1 … 1, with the foreground that is read best on it."""
    position = (min(max(share, -1.0), 1.0) + 1) / 2 * (len(_SCALE) - 1)
    low = min(int(position), len(_SCALE) - 2)
    red, green, blue = (a + (position - low) * (b - a) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))
    return Style(
        color="#ffffff" if luminance(red, green, blue) < 0.18 else "#000000",
        bgcolor=Color.from_rgb(red, green, blue),
    )


def luminance(red: float, green: float, blue: float) -> float:
    """Relative luminance of an sRGB colour of 0 … 255, 0 … 1 (WCAG 2). At 0.18 black and white read equally well."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (red / 255, green / 255, blue / 255)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _legend(limit: float, shaping: Shaping) -> Text:
    legend = Text("ψ  ")
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        legend.append(f" {share * limit:+.2f} ", shade(share))
    temperature = f" τ {shaping.temperature:g}" if shaping.reads_temperature else ""
    return legend.append(
        f"\n   potential {shaping.potential}{temperature}   γ {shaping.gamma:g}   terminal {shaping.terminal}"
        + ("" if shaping.form == "difference" else f"   form {shaping.form}")
    )


def _sums(chosen: TokenShaping, rejected: TokenShaping) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "Σψ", "T", "Σψ / T"):
        table.add_column(name, justify="right" if name else "left")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        table.add_row(name, f"{side.psi_T.sum():+.3f}", str(len(side.psi_T)), f"{side.psi_T.mean():+.3f}")
    total = chosen.psi_T.sum() - rejected.psi_T.sum()
    mean = chosen.psi_T.mean() - rejected.psi_T.mean()
    length = len(chosen.psi_T) - len(rejected.psi_T)
    table.add_row("margin", f"{total:+.3f}", f"{length:+d}", f"{mean:+.3f}", style="bold")
    return table


def _visible(token: str) -> str:
    """The token with its spaces and line breaks made visible."""
    return token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


def _width(picture: RenderableType) -> int:
    """Columns that the picture fills, at most FILE_COLUMNS."""
    lines = Console(width=FILE_COLUMNS).render_lines(picture, pad=False)
    return max(sum(segment.cell_length for segment in line) for line in lines)


def _html(paper: Console) -> str:
    return paper.export_html(theme=DEFAULT_TERMINAL_THEME, inline_styles=True, clear=False)


def _svg(paper: Console) -> str:
    picture = paper.export_svg(title="tvkd show", theme=DEFAULT_TERMINAL_THEME, clear=False, unique_id="tvkd")
    # rich points to a web font; a picture that is looked at must not ask the network for anything.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
