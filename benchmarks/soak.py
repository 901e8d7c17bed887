"""One server and clients of all kinds for as long as you like: nothing hangs, nothing is lost, memory is flat.

    python benchmarks/soak.py --seconds 3600

Side by side: clients that ask for a little on demand, answers that are streamed and sometimes left, a fill in bulk,
ten times more than the queue holds, clients that die in the middle of a request, and readers that do not read. Each
kind has an API key of its own. Meanwhile the disk refuses writes now and then, and the server is stopped by SIGTERM and
started again. At the end it is checked that

- each request was answered, or ended in an error: none waited longer than its time,
- each value that was ever answered is still there, to the bit, and was the same each time,
- the server's memory did not grow, and it ended with 0 each time,

and the times of the requests on demand that met no stop are printed.
"""

import argparse
import json
import random
import resource
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET

import httpx
import numpy as np
from serving import HEAD, Serving, items

from tvkd_client.http import TeacherClient
from tvkd_shared.errors import TVKDError
from tvkd_shared.wire import TokenItem

QUEUE_TOKENS, REQUEST_SECONDS, TRANSFER_SECONDS = 20_000, 20, 3
PATIENCE = 120
"""Seconds after which a request counts as hanging: longer than any bound of the server."""
FAULT = "a disk that takes no writes"
KINDS = ("trainer", "streaming", "bulk", "overload", "dying", "slow")


def keys(folder: Path) -> Path:
    """A key for each kind of client, which is its name. Those that behave badly may fill a part of the queue."""
    tables = [f'[{kind}]\nsha256 = "{sha256(kind.encode()).hexdigest()}"\n' for kind in KINDS]
    for kind, share in (("overload", 2), ("dying", 8), ("slow", 8)):
        tables[KINDS.index(kind)] += f"max_queued_tokens = {QUEUE_TOKENS // share}\n"
    path = folder / "keys.toml"
    path.write_text("\n".join(tables))
    return path


class Soak:
    def __init__(self, server: Serving) -> None:
        self.server = server
        self.ended = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.seconds: list[float] = []
        self.answered: dict[str, tuple[dict, str]] = {}
        """By key: an item of one completion, and its values as they came."""
        self.memory: list[float] = []
        self._lock = threading.Lock()

    def note(self, who: str, outcome: str) -> None:
        with self._lock:
            self.outcomes[f"{who}: {outcome}"] += 1

    def keep(self, item: dict, answer: dict) -> None:
        """Remember each completion's values. Values that were others before are a fault."""
        for ids, row in zip(item["completions"], answer["completions"], strict=True):
            one = {"prompt_token_ids": item["prompt_token_ids"], "completions": [ids]}
            values = json.dumps([row["values"], row["action_logits"]])
            with self._lock:
                if self.answered.setdefault(row["key"], (one, values))[1] != values:
                    self.faults.append(f"{row['key']} has other values than before")

    def on_demand(self, chance: random.Random) -> None:
        """A trainer: a little at a time, half of it asked for before."""
        known: list[dict] = []
        fresh = np.random.default_rng(chance.getrandbits(32))
        with self.client("trainer") as client:
            while not self.ended.is_set():
                asked = items(fresh, 2, 20, 10)
                asked += chance.sample(known, min(2, len(known)))
                started = time.perf_counter()
                answer = self.post(client, "on demand", {"items": asked})
                if answer is not None:
                    self.seconds.append(time.perf_counter() - started)
                    for item, row in zip(asked, answer["items"], strict=True):
                        self.keep(item, row)
                    known = (known + asked[:2])[-200:]
                time.sleep(0.02)

    def streaming(self, chance: random.Random) -> None:
        """Items as they are computed, now and then left in the middle: what came has to be stored, and the same."""
        fresh = np.random.default_rng(chance.getrandbits(32))
        client = TeacherClient(self.server.url, api_key="streaming", request_tokens=QUEUE_TOKENS, patience=PATIENCE)
        while not self.ended.is_set():
            asked, came = [TokenItem(**item) for item in items(fresh, 30, 40, 30)], {}
            try:
                for index, records in client.stream(asked):
                    came[index] = records
                    if chance.random() < 0.01:
                        break
                again = client.potentials([asked[index] for index in came], cache="only")
                self.note("streaming", "ok" if len(came) == len(asked) else "left")
            except TVKDError as error:
                self.note("streaming", error.code)
                if error.code not in ("overloaded", "teacher-unavailable", "store-unavailable"):
                    self.faults.append(f"streaming: {error}")
                time.sleep(1)
                continue
            for first, second in zip(came.values(), again, strict=True):
                if [one.numbers.tobytes() for one in first] != [one.numbers.tobytes() for one in second]:
                    self.faults.append("a streamed value is another when it is asked for again")

    def bulk(self, chance: random.Random) -> None:
        """`tvkd prefetch`: what it was told is stored has to be there."""
        fresh = np.random.default_rng(chance.getrandbits(32))
        client = TeacherClient(self.server.url, api_key="bulk", patience=PATIENCE)
        while not self.ended.is_set():
            asked = [TokenItem(item["prompt_token_ids"], item["completions"]) for item in items(fresh, 20, 40, 30)]
            try:
                client.fill(asked)
                client.potentials(asked, cache="only")
                self.note("bulk", "ok")
            except TVKDError as error:
                self.note("bulk", error.code)
                if error.code == "not-cached":
                    self.faults.append(f"a fill lost values: {error}")
                time.sleep(1)

    def overload(self, chance: random.Random) -> None:
        """Ten times what the queue holds, from ten clients that do not wait."""
        fresh = np.random.default_rng(chance.getrandbits(32))
        with self.client("overload") as client:
            while not self.ended.is_set():
                self.post(client, "overload", {"items": items(fresh, QUEUE_TOKENS // 200, 100, 50), "cache": "skip"})
                time.sleep(0.2)

    def dying(self, chance: random.Random) -> None:
        """A client that is killed anywhere in its request, or while it waits."""
        fresh = np.random.default_rng(chance.getrandbits(32))
        while not self.ended.is_set():
            request, outcome = self.request("dying", {"items": items(fresh, 20)}), "no connection"
            with suppress(OSError), self.server.connect() as connection:
                connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(request[: chance.randrange(len(request))] if chance.random() < 0.5 else request)
                outcome = "left"
            self.note("dying", outcome)
            time.sleep(chance.random() / 5)

    def slow(self, chance: random.Random) -> None:
        """A client that asks for much and does not read it: it is cut."""
        asked = {"items": items(np.random.default_rng(7), 100, 20, 60), "entropy": True}
        while not self.ended.is_set():
            outcome = "no connection"
            with suppress(OSError), self.server.connect(self.request("slow", asked), SO_RCVBUF=4096) as connection:
                outcome = "no answer"
                first = connection.recv(64)
                outcome = first[9:12].decode() or "cut"
                time.sleep(TRANSFER_SECONDS + 2)
            self.note("slow", outcome)
            time.sleep(0.2)

    def post(self, client: httpx.Client, who: str, body: dict) -> dict | None:
        try:
            answer = client.post(f"{self.server.url}/v1/potentials", json=body)
        except httpx.ReadTimeout:
            self.faults.append(f"{who}: no answer within {PATIENCE} s")
            return None
        except httpx.TransportError as error:  # while the server is away
            self.note(who, type(error).__name__)
            time.sleep(0.5)
            return None
        code = "ok" if answer.status_code == 200 else answer.json()["code"]
        self.note(who, code)
        if code not in ("ok", "overloaded", "teacher-unavailable", "store-unavailable"):
            self.faults.append(f"{who}: {answer.text}")
        return answer.json() if code == "ok" else None

    @staticmethod
    def client(kind: str) -> httpx.Client:
        return httpx.Client(timeout=PATIENCE, headers={"Authorization": f"Bearer {kind}"})

    @staticmethod
    def request(kind: str, body: dict) -> bytes:
        text = json.dumps(body).encode()
        about = f"Authorization: Bearer {kind}\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
        return HEAD + about.encode() + text

    def disturb(self, seconds: float) -> None:
        """The disk takes no writes now and then, for two seconds; and the server stops in every third of the time."""
        end, step = time.monotonic() + seconds, 0
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, seconds / 42))
            step += 1
            if step % 6 == 3:
                self.fill_the_disk()
            if step % 14 == 0 and left > seconds / 10:
                self.memory.append(self.server.memory())
                if code := self.server.stop():
                    self.faults.append(f"the server ended with {code}")
                self.server.start()
            elif step % 14 == 5:
                self.memory.append(self.server.memory())

    def fill_the_disk(self) -> None:
        """Every write to a file fails for two seconds, as where a quota is used up."""
        process = self.server.process.pid
        before = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (0, before[1]))
        time.sleep(2)
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)
        self.note("disturbed", FAULT)

    def run(self, seconds: float, seed: int) -> None:
        kinds: list[Callable[[random.Random], None]] = (
            [self.on_demand] * 3 + [self.streaming] * 2 + [self.bulk] * 2 + [self.overload] * 10
        )
        kinds += [self.dying] * 2 + [self.slow] * 2

        def work(number: int) -> None:
            try:
                kinds[number](random.Random(f"{seed} {number}"))
            except Exception:
                self.faults.append(traceback.format_exc())

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(kinds))]
        for thread in threads:
            thread.start()
        self.disturb(seconds)
        self.ended.set()
        for thread in threads:
            thread.join(2 * PATIENCE)
        self.faults += ["a client hangs" for thread in threads if thread.is_alive()]

    def check(self) -> None:
        """At rest and started anew, the server still has what it answered, and computes."""
        self.memory.append(self.server.memory())
        if code := self.server.stop():
            self.faults.append(f"the server ended with {code}")
        self.server.start()
        kept = list(self.answered.items())
        with self.client("trainer") as client:
            for first in range(0, len(kept), 200):
                part = kept[first : first + 200]
                body = {"items": [item for _, (item, _) in part], "cache": "only"}
                answer = client.post(f"{self.server.url}/v1/potentials", json=body)
                if answer.status_code != 200:
                    self.faults.append(f"values are lost: {answer.text}")
                    continue
                for (item, _), row in zip([one for _, one in part], answer.json()["items"], strict=True):
                    self.keep(item, row)
            fresh = {"items": items(np.random.default_rng(), 1)}
            client.post(f"{self.server.url}/v1/potentials", json=fresh).raise_for_status()
        # Half of each life stands beside its end: what a server loads at first is no growth.
        if max(self.memory) > min(self.memory) + 150:
            self.faults.append(f"memory grew: {self.memory}")
        if "Traceback" in (log := self.server.log.read_text()):
            self.faults.append(log[log.index("Traceback") :][:3000])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    flags = ["--max-queued-tokens", QUEUE_TOKENS, "--request-seconds", REQUEST_SECONDS]
    flags += ["--transfer-seconds", TRANSFER_SECONDS, "--drain-seconds", 5, "--max-batch-tokens", 1024]
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Serving(Path(folder), *flags, "--api-keys", keys(Path(folder)), hidden_size=64))
        try:
            soak.run(arguments.seconds, arguments.seed)
            soak.check()
        finally:
            soak.server.kill()
    for outcome, count in sorted(soak.outcomes.items()):
        print(f"{outcome:40}{count:>10,}")
    median, p99, most = 1000 * np.quantile(soak.seconds or [0.0], [0.5, 0.99, 1])
    print(f"\n{len(soak.answered):,} completions answered on demand, each with the same values to the bit")
    print(f"memory, MB: {', '.join(f'{one:.0f}' for one in soak.memory)}")
    print(f"on demand, ms: median {median:.0f}, p99 {p99:.0f}, most {most:.0f}")
    for fault in dict.fromkeys(soak.faults):
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
