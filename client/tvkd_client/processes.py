"""In how many processes the rows of a data set are worked on."""

import os

ROWS_A_PROCESS = 5_000
"""With fewer rows, starting a further process takes longer than it saves."""


def processes(rows: int) -> int | None:
    """One for each core where there are many rows; None, which is `datasets`' word for this process, for few."""
    count = min(os.cpu_count() or 1, rows // ROWS_A_PROCESS)
    return count if count > 1 else None
