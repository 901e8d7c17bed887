"""Writers of one shared store, each a process, and killed where they are told to be. Started by test_shared*.py.

The URL is the argument. Each line of input says what writers run at once, each answered line what became of them. They
are forked here, where no request was ever made: the library's threads do not survive a fork.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from typing import Any

import obstore
import zarr.codecs  # noqa: F401 - once here, and not in each writer
from stored_records import key_of, record_of

from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store import store as store_module
from tvkd_shared.store.compact import compact
from tvkd_shared.store.copying import copy
from tvkd_shared.store.gc import collect

store_module.CHECKPOINT_EVERY = 4  # so that kills meet it


def further(number: int) -> tuple[float, ...]:
    """The further temperatures that a number is put with."""
    return (0.5,) if number % 2 else ()


def killed_at(request: int, when: str) -> None:
    """Kill this process at its so many-th request from now: `before` it is sent, or `after` it was answered."""
    counter = itertools.count(1)

    def counted(call: Any) -> Any:
        def with_kill(*arguments: Any, **options: Any) -> Any:
            mine = next(counter) == request
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*arguments, **options)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return with_kill

    for name in ("put", "get", "list", "delete"):
        setattr(obstore, name, counted(getattr(obstore, name)))


def write(place: str, acknowledged: int, task: dict[str, Any]) -> None:
    """Put one batch after the other, and tell of each when its put has returned."""
    if task.get("step") == "opening":
        killed_at(task["request"], task["when"])
    if "seconds" in task:
        threading.Timer(task["seconds"], os.kill, (os.getpid(), signal.SIGKILL)).start()
    with closing(open_store(place)) as store:
        for number, batch in enumerate(task["batches"]):
            if number == 1 and task.get("step") == "putting":
                killed_at(task["request"], task["when"])
            store.put("teacher", [(key_of(n), record_of(n, further(n), task["variant"])) for n in batch])
            os.write(acknowledged, (json.dumps(batch) + "\n").encode())
        if task.get("step") == "tidying":
            killed_at(task["request"], task["when"])
            compact(store)
            collect(store, grace_seconds=0.0)
        if task.get("step") == "importing":
            killed_at(task["request"], task["when"])
            copy(StoreReader(task["source"]), store, segment_bytes=1000)


def run(place: str, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    children = []
    for task in tasks:
        told, tells = os.pipe()
        if not (child := os.fork()):
            code = 1
            try:
                write(place, tells, task)
                code = 0
            finally:
                os._exit(code)
        os.close(tells)
        children.append((child, told))
    ended = []
    for child, told in children:
        with os.fdopen(told) as lines:
            acknowledged = [n for line in lines if line.endswith("\n") for n in json.loads(line)]
        ended.append({"acknowledged": acknowledged, "code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})
    return ended


@contextmanager
def writers(place: str):
    """A function that runs writers at once: given their tasks, it returns what each acknowledged and its exit code."""
    process = subprocess.Popen(
        [sys.executable, __file__, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def at_once(*tasks: dict[str, Any]) -> list[dict[str, Any]]:
        process.stdin.write(json.dumps(tasks) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        yield at_once
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(sys.argv[1], json.loads(line))), flush=True)
