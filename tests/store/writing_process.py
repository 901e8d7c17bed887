"""Puts records for ever, printing each number when its put has returned. Started, and killed, by test_kill.py."""

import itertools
import sys

from stored_records import key_of, record_of

from tvkd_server.store import Store

store = Store(sys.argv[1], seal_bytes=15_000)
for first in itertools.count(int(sys.argv[2]), 3):
    numbers = range(first, first + 3)
    store.put([(key_of(n), record_of(n, (0.5,) if n % 2 else ())) for n in numbers])
    print(numbers[-1], flush=True)
