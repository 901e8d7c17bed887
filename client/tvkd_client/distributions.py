"""How a reading's margins spread: over their own size, and over the difference in length. Arrays are float64 [N]."""

from typing import Any

import numpy as np

from tvkd_client.margins import wilson
from tvkd_shared.value import Float64

BARS = 40
GROUPS = 8
OUTSIDE = 0.005
"""The share of margins at either end that a histogram only counts: a few far ones would squeeze all others together."""


def histogram(margins: Float64) -> dict[str, Any]:
    """`counts` of margins between neighbouring `edges`, of which 0 is one, and of those `below` and `above` all edges.

    A margin that lies on an edge counts above it.
    """
    low, high = (float(end) for end in np.quantile(margins, [OUTSIDE, 1 - OUTSIDE]))
    width = (max(high, 0.0) - min(low, 0.0)) / BARS or 1.0
    edges = width * np.arange(np.floor(low / width), np.floor(high / width) + 2)
    place_N = np.searchsorted(edges, margins, side="right")
    counts = np.bincount(place_N, minlength=len(edges) + 1)
    return {
        "edges": edges.tolist(),
        "counts": counts[1:-1].tolist(),
        "below": int(counts[0]),
        "above": int(counts[-1]),
    }


def by_length(margins: Float64, lengths: Float64) -> list[dict[str, Any]]:
    """Agreement with the label and its 95 % interval, in groups of pairs of like differences in length d.

    Each group has `shortest` and `longest`, the least and the largest d in it. Groups are about equal in size, and
    pairs of one d are in one group.
    """
    starts = np.unique(np.quantile(lengths, np.arange(GROUPS) / GROUPS, method="higher"))
    place_N = np.searchsorted(starts, lengths, side="right")
    groups = []
    for place in np.unique(place_N):
        inside = place_N == place
        agreement = float((margins[inside] > 0).mean())
        groups.append(
            {
                "shortest": int(lengths[inside].min()),
                "longest": int(lengths[inside].max()),
                "pairs": int(inside.sum()),
                "agreement": agreement,
                "interval": wilson(agreement, int(inside.sum())),
            }
        )
    return groups
