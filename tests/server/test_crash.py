"""A value the server answered is on disk: `kill -9` at any moment loses none and shows none torn."""

import random
import threading
import time

import httpx
import pytest

from running_server import start_server
from tvkd_shared.store import StoreReader

KILLS, CLIENTS = 10, 4


def random_item(rng):
    def token_ids(longest):
        return [rng.randrange(8, 128) for _ in range(rng.randint(1, longest))]

    return {"prompt_token_ids": token_ids(6), "completions": [token_ids(20) for _ in range(rng.randint(1, 3))]}


def post(url, items, **rest):
    answer = httpx.post(f"{url}/v1/potentials", json={"items": items, "entropy": True} | rest, timeout=60)
    answer.raise_for_status()
    return answer.json()["items"]


def write_until_killed(server, answered, items, seed):
    """Clients write new sequences; what each was answered is kept beside the question."""

    def client(number):
        rng = random.Random(f"{seed}-{number}")
        while True:
            item = random_item(rng)
            try:
                (answer,) = post(server.url, [item])
            except httpx.HTTPError:
                return
            for completion in answer["completions"]:
                del completion["cached"]
                answered[completion["key"]] = completion
            items.append(item)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(random.Random(seed).uniform(0.05, 1.0))
    server.kill()
    for thread in threads:
        thread.join()


def check_every_answer(url, answered, items):
    for start in range(0, len(items), 500):
        for item in post(url, items[start : start + 500], cache="only"):
            for completion in item["completions"]:
                assert completion.pop("cached")
                assert completion == answered[completion["key"]]


@pytest.mark.crash
@pytest.mark.timeout(900)
def test_kill_9_at_any_moment_loses_no_answered_value_and_tears_none(tiny_teacher, tmp_path):
    store, answered, items = tmp_path / "values", {}, []
    for kill in range(KILLS):
        # Small segments: most kills then fall near a seal.
        server = start_server(tiny_teacher, store, "--seal-bytes", "20000")
        check_every_answer(server.url, answered, items)
        write_until_killed(server, answered, items, seed=kill)
    reader = StoreReader(store)
    records = reader.get([bytes.fromhex(key) for key in answered])
    assert len(answered) > 10 * KILLS
    for record, answer in zip(records, answered.values(), strict=True):
        assert record.values[1.0].tolist() == answer["values"][0]
        assert record.entropies.tolist() == answer["entropies"]
