"""An engine that fails at every question, as after an error of CUDA, makes its server not ready."""

import time
from contextlib import contextmanager

from starlette.testclient import TestClient

from tvkd_server import readiness
from tvkd_server.app import create_app
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.loading import load_teacher

ITEM = {"prompt_token_ids": [9], "completions": [[10, 11]]}


@contextmanager
def running(teacher, folder, ended):
    settings = ServeSettings(model=str(teacher), store=str(folder / "values"), device="cpu")
    with TestClient(create_app(settings, lambda: load_teacher(settings), lambda: ended.append(True))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.05)
        yield client, client.app.state.readiness.service.teacher


def broken(*_, **__):
    raise RuntimeError("CUDA error: device-side assert triggered")


def test_a_model_that_breaks_under_way_makes_the_server_not_ready(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(readiness, "GRACE_SECONDS", 0.0)
    ended = []
    with running(tiny_teacher, tmp_path, ended) as (client, teacher):
        assert client.post("/v1/potentials", json={"items": [ITEM]}).status_code == 200
        time.sleep(1)
        assert client.get("/readyz").status_code == 200
        teacher._pass._backbone._forward.forward = broken
        while client.get("/readyz").status_code == 200:
            time.sleep(0.05)
        assert client.get("/readyz").json()["code"] == "teacher-unavailable"
        assert client.get("/healthz").status_code == 200
        while not ended:
            time.sleep(0.05)


def test_one_failure_is_no_end(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 0.1)
    failures = []

    def breaks_once(*arguments, **named):
        if not failures:
            failures.append(True)
            broken()
        return whole(*arguments, **named)

    with running(tiny_teacher, tmp_path, []) as (client, teacher):
        whole = teacher._pass._backbone._forward.forward
        teacher._pass._backbone._forward.forward = breaks_once
        while not failures:
            time.sleep(0.05)
        time.sleep(1)
        assert client.get("/readyz").status_code == 200
