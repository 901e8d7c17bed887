"""A server that fails under any role: training stops or waits with a clear line, and no step used a wrong number."""

import itertools
import time
from contextlib import ExitStack, closing

import httpx
import pytest
import torch
from datasets import Dataset
from faulty_proxy import Asked, FaultyProxy, doctored, without_guard
from runs import SMALL, assert_same_run, train
from transformers import TrainerCallback

from running_server import start_server
from tvkd_client import ServerSource, TeacherClient, TVKDConfig, TVKDTrainer
from tvkd_shared.errors import TeacherMismatch, TeacherUnavailable, WrongAnswer

ROLES = ("teacher", "teacher_reference", "reference")
STEPS, GOOD = 4, 2

# All completions have one length, so that values which were mixed up fit everywhere.
WORDS = torch.randint(8, 128, (2 * STEPS, 3, 4), generator=torch.Generator().manual_seed(11))
PAIRS = [
    dict(
        zip(
            ("prompt", "chosen", "rejected"), (" " + " ".join(f"w{word}" for word in side) for side in row), strict=True
        )
    )
    for row in WORDS.tolist()
]


def swapped(_, rows, __):
    """Two completions' values with their keys, in each other's place."""
    rows[0]["row"], rows[1]["row"] = rows[1]["row"], rows[0]["row"]


def longer(_, rows, __):
    """One state more, and a length that fits it."""
    rows[0]["length"] += 1
    for column in rows[0].keys() - {"row", "key", "cached", "length"}:
        rows[0][column].append(rows[0][column][0])


def not_a_number(_, rows, __):
    rows[0]["value_1"][1] = float("nan")


def unavailable(_: Asked) -> httpx.Response:
    problem = {"title": "", "status": 503, "detail": "the teacher is loading", "code": "teacher-unavailable"}
    return httpx.Response(503, json=problem, headers={"Retry-After": "0"})


def stalled(seconds: float):
    def answer(asked: Asked) -> httpx.Response:
        time.sleep(seconds)
        return asked.answer()

    return answer


STOPS = {
    "two completions swapped": (doctored(swapped), WrongAnswer, r"key \w+ came; its tokens have key"),
    "NaN": (doctored(not_a_number), WrongAnswer, "column value_1 are not all finite"),
    "a state too many": (doctored(longer), WrongAnswer, "length 6 came; it has 5 tokens"),
    "another model at the URL": (
        lambda asked: asked.answer(asked.other),
        TeacherMismatch,
        "was asked for; this server runs",
    ),
    "another model's values": (without_guard, TeacherMismatch, "answers with teacher"),
    "reset for good": (lambda _: None, TeacherUnavailable, "cannot reach http.*: Connection reset by peer"),
    "stalled for good": (stalled(3), TeacherUnavailable, "did not answer within 1.5 s"),
}
PASSES = {"503 with a time to retry": unavailable, "reset": lambda _: None, "stalled": stalled(0.5)}


@pytest.fixture(scope="module")
def proxies(server, student, tmp_path_factory):
    """A way to a real server for each role. The student's model stands for T0 too."""
    with ExitStack() as opened:
        second = start_server(student, tmp_path_factory.mktemp("of-student") / "values")
        opened.callback(second.kill)
        of_teacher, of_student = (opened.enter_context(httpx.Client(base_url=one.url)) for one in (server, second))
        ends = {"teacher": (of_teacher, of_student)} | dict.fromkeys(ROLES[1:], (of_student, of_teacher))
        yield {role: opened.enter_context(closing(FaultyProxy(*ends[role]))) for role in ROLES}


@pytest.fixture(scope="module")
def make(proxies, student, tmp_path_factory):
    """A trainer whose values come through the proxies, by clients of these settings."""

    def made(**client: float) -> TVKDTrainer:
        for proxy in proxies.values():
            proxy.heal()
        sources = {role: ServerSource(proxy.url) for role, proxy in proxies.items()}
        for source in sources.values():
            source.client = TeacherClient(source.client.url, **client)
        settings = SMALL | {"objective": "token", "dpo_weight": 0.5, "max_steps": STEPS, "value_concurrency": 1}
        args = TVKDConfig(str(tmp_path_factory.mktemp("out")), **settings)
        return TVKDTrainer(str(student), args=args, train_dataset=Dataset.from_list(PAIRS), sources=sources)

    return made


class Weights(TrainerCallback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.after = {}

    def on_step_end(self, args, state, control, model, **_):
        self.after[state.global_step] = {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.fixture(scope="module")
def calm(make):
    """Losses and last weights of a run without a fault, and its weights after each step."""
    trainer, weights = make(), Weights()
    trainer.add_callback(weights)
    run = train(trainer)
    assert all(
        (one["lm_head.weight"] != other["lm_head.weight"]).any()
        for one, other in itertools.pairwise(weights.after.values())
    )
    return run, weights.after


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("fault", STOPS)
def test_a_fault_stops_the_run_before_its_numbers_are_used(make, proxies, calm, role, fault):
    answer, error, line = STOPS[fault]
    trainer = make(patience=0.1, timeout=1.5 if "stalled" in fault else 60)
    proxies[role].fail(answer, behind=GOOD)
    with pytest.raises(error, match=rf"^{role}: .*{line}") as ended:
        trainer.train()
    assert "\n" not in str(ended.value)
    assert trainer.state.global_step == GOOD
    now, then = trainer.model.state_dict(), calm[1][GOOD]
    assert all(torch.equal(now[name], then[name]) for name in then)


@pytest.mark.parametrize("fault", PASSES)
def test_a_fault_that_passes_changes_no_number(make, proxies, calm, caplog, fault):
    trainer = make()
    for proxy in proxies.values():
        proxy.fail(PASSES[fault], behind=GOOD, times=1)
    assert_same_run(train(trainer), calm[0])
    assert [proxy.seen for proxy in proxies.values()] == [1, 1, 1]
    if fault != "stalled":
        told = [record.message for record in caplog.records if "trying again for up to 120 s" in record.message]
        assert [url for url in (proxy.url for proxy in proxies.values()) if not any(url in line for line in told)] == []
