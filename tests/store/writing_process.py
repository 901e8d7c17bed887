"""Processes that write a store and are killed: at any moment, or by themselves at a given file operation.

writing_process.py PATH FIRST            puts records for ever, printing each number when its put has returned
writing_process.py --at PATH TASK        for each number N that it reads: a child of its own does the task on the
                                         store at PATH/N, and kills itself with -9 at its N-th file operation;
                                         prints N, what was acknowledged, and whether it was killed
"""

import itertools
import os
import signal
import sqlite3
import sys
from pathlib import Path

import zarr.codecs  # noqa: F401 - once here, and not in each child
from stored_records import TEACHER, numbered

from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.compact import compact
from tvkd_shared.store.copying import copy
from tvkd_shared.store.gc import collect

FURTHER = (0.5,)
"""The temperature that each odd number has beside the base block."""


def some(numbers):
    return [record for n in numbers for record in numbered([n], FURTHER if n % 2 else ())]


def put_for_ever(path, first):
    store = open_store(path, seal_bytes=15_000)
    for number in itertools.count(first, 3):
        store.put(TEACHER, some(range(number, number + 3)))
        print(number + 2, flush=True)


def fill(path, acknowledge):
    """Puts before and after a seal and a checkpoint, on what a killed process left sealed and pending."""
    store = open_store(path)
    for numbers in ([6, 7, 8], [9], [10, 11]):
        store.put(TEACHER, some(numbers))
        acknowledge(numbers[-1])
        if numbers == [9]:
            store.seal()
            store.write_checkpoint()


def tidy(path, acknowledge):
    """Compaction, and collection of what it left."""
    store = open_store(path)
    compact(store)
    collect(store, grace_seconds=0.0)
    store.put(TEACHER, some([6, 7]))
    acknowledge(7)


def take_in(path, acknowledge):
    """Import, as `tvkd store import` does it."""
    store = open_store(path)
    store.seal()
    copy(StoreReader(path.with_name("source")), store, segment_bytes=2000)
    acknowledge(11)


def kill_at(operation):
    """Kill this process at its operation of that number: before it, and half way through a write."""
    passed = itertools.count(1)
    write = os.write

    def count(*_):
        if next(passed) == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_in_two(descriptor, content):
        if len(content) < 2:
            return write(descriptor, content)
        count()
        half = write(descriptor, content[: len(content) // 2])
        count()
        return half + write(descriptor, content[half:])

    def counted(function):
        return lambda *arguments, **options: (count(), function(*arguments, **options))[1]

    class Counted(sqlite3.Connection):
        """Killed before each statement of SQLite that changes something."""

        def execute(self, statement, *arguments):
            if not statement.startswith(
                ("SELECT", "PRAGMA journal", "PRAGMA synchronous", "PRAGMA secure", "ROLLBACK")
            ):
                count()
            return super().execute(statement, *arguments)

        def executemany(self, *arguments):
            return (count(), super().executemany(*arguments))[1]

    connect = sqlite3.connect
    sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=Counted, **options)
    os.write = write_in_two
    for name in ("fsync", "fdatasync", "link", "replace", "rename", "unlink", "mkdir", "rmdir", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    return write


def one_child(path, task, operation):
    """The last number that was acknowledged, or the one before, and whether the child was killed."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        write = kill_at(operation)
        try:
            task(path, lambda number: write(writable, b"%d\n" % number))
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as acknowledgements:
        last = [5, *map(int, acknowledgements)][-1]
    status = os.waitpid(child, 0)[1]
    return last, -os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    if sys.argv[1] == "--at":
        for line in sys.stdin:
            last, code = one_child(Path(sys.argv[2], line.strip()), globals()[sys.argv[3]], int(line))
            print(last, code, flush=True)
    else:
        put_for_ever(Path(sys.argv[1]), int(sys.argv[2]))
