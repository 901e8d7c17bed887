"""`tvkd store` as tests call it, and what a store holds."""

import json
from contextlib import closing

from tvkd.store.command import store as main
from tvkd_shared.record import column_names
from tvkd_shared.store import StoreReader

PAIRS = [
    {"prompt": f"w{20 + n} w21 ", "chosen": f"w{30 + n} w31 w32", "rejected": f"w{50 + n} w{60 + n}"} for n in range(8)
]


def run(capsys, *arguments):
    """Exit code and what was printed, as JSON."""
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def everything(place):
    with closing(StoreReader(place)) as store:
        numbers = {}
        for name, entry in store.catalog.segments.items():
            for key in store.segment(name).keys():  # noqa: SIM118 - a method, not a dict's
                for column in column_names([2.0]):
                    if record := store.get([key.tobytes()], [column])[0]:
                        numbers[key.tobytes(), column] = record.numbers.tobytes()
            assert entry.bytes > 0
        return numbers
