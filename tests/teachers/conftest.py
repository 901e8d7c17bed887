"""Teachers and references of every small architecture, saved and loaded once a run."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from small_models import Reference, load, save
from tvkd_server.teachers.transformers_teacher import TransformersTeacher


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch, request):
    """Weights are hashed into a folder of the test's own; the real teacher lies in the user's."""
    if "real" not in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """Directory of a small random model, by architecture."""
    return functools.cache(lambda name: save(name, tmp_path_factory.mktemp("models") / name))


@pytest.fixture(scope="session")
def teacher(saved) -> Callable[..., TransformersTeacher]:
    """The teacher of an architecture, with the given settings."""
    return functools.cache(lambda name, **settings: load(saved(name), **settings))


@pytest.fixture(scope="session")
def reference(saved) -> Callable[[str], Reference]:
    return functools.cache(lambda name: Reference(saved(name), "sdpa" if name == "gpt2" else "eager"))
