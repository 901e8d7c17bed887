"""What is in a store, by teacher."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from tvkd_shared.record import temperature_of
from tvkd_shared.store import StoreReader
from tvkd_shared.store.format import FORMAT_VERSION


def gather(store: StoreReader) -> dict[str, Any]:
    """JSON of the whole store and of each teacher. Recent blocks count in the whole only."""
    counts = store.counts()
    provenance = store.teachers()
    entries = list(store.catalog.segments.values())
    of_teacher = {}
    for teacher in sorted({entry.teacher for entry in entries} | provenance.keys()):
        segments = [entry for entry in entries if entry.teacher == teacher]
        tokens, size = sum(entry.tokens for entry in segments), sum(entry.bytes for entry in segments)
        of_teacher[teacher] = {
            "sequences": sum(entry.sequences for entry in segments),
            "tokens": tokens,
            "bytes": size,
            "bytes_per_token": size / tokens if tokens else 0.0,
            "segments": len(segments),
            "temperatures": sorted(
                {tau for entry in segments for tau in map(temperature_of, entry.columns) if tau is not None}
            ),
            "provenance": provenance.get(teacher),
        }
    return {
        "store": store.place,
        "version": FORMAT_VERSION,
        "mantissa_bits": store.format.mantissa_bits,
        "relative_error": store.format.relative_error,
        "sequences": counts.sequences,
        "tokens": counts.tokens,
        "bytes": counts.bytes,
        "bytes_per_token": counts.bytes / counts.tokens if counts.tokens else 0.0,
        "segments": len(entries),
        "recent": len(store.recent_rows()),
        "commits": store.catalog.number,
        "corrupt": counts.corrupt,
        "teachers": of_teacher,
        "certificates": [certificate.model_dump() for certificate in store.certificates()],
    }


def table(contents: Mapping[str, Any]) -> RenderableType:
    """The same for people."""
    precision = (
        "float32, exact"
        if not contents["relative_error"]
        else f"float32 with {contents['mantissa_bits']} of 23 mantissa bits: each number within "
        f"{contents['relative_error']:.1e} of itself (at 25: {25 * contents['relative_error']:.4f})"
    )
    lines = [
        f"{contents['store']}: format {contents['version']}, {precision}",
        f"{contents['sequences']:,} sequences, {contents['tokens']:,} tokens, {contents['bytes']:,} bytes "
        f"({contents['bytes_per_token']:.1f} a token), {contents['segments']} segments, "
        f"{contents['recent']:,} recent blocks, {contents['commits']} commits",
    ]
    rows = Table("teacher", "", box=None, show_header=False, pad_edge=False)
    for teacher, summary in contents["teachers"].items():
        known = summary["provenance"] or {}
        rows.add_row(teacher, f"{known.get('name', 'unknown')}, {known.get('dtype', '?')}, {_engine(known)}")
        rows.add_row(
            "",
            f"{summary['sequences']:,} sequences, {summary['tokens']:,} tokens, {summary['bytes_per_token']:.1f} bytes "
            f"a token in {summary['segments']} segments, "
            f"temperatures {', '.join(map(str, summary['temperatures'])) or 'none'}",
        )
        for certificate in contents["certificates"]:
            if certificate["teacher"] == teacher:
                rows.add_row("", certificate_line(certificate))
    if contents["corrupt"]:
        lines.append(f"{contents['corrupt']} checks failed; `tvkd store verify` names the files")
    return Group(*lines, rows)


def certificate_line(certificate: Mapping[str, Any]) -> str:
    """A certificate in one line."""
    errors = ", ".join(
        f"{100 * float(quantile):g} % within {error:.1e}" for quantile, error in certificate["errors"].items()
    )
    day = time.strftime("%Y-%m-%d", time.gmtime(certificate["made"]))
    return f"{day}: {certificate['sequences']:,} sequences computed again by {certificate['reference']}: {errors}"


def _engine(provenance: Mapping[str, Any]) -> str:
    return f"{provenance.get('engine', '?')} {provenance.get('engine_version', '')}".strip()
