"""An object storage and a store's URL in it, for the tests of shared stores."""

import pytest

from object_storage import SERVERS, ObjectStorage, new_place, serving


@pytest.fixture(scope="session", params=SERVERS)
def storage(request) -> ObjectStorage:
    """Each real S3 server in turn."""
    with serving(request.param) as running:
        yield running


@pytest.fixture
def index_folder(tmp_path, monkeypatch):
    """Where this test's processes keep the indexes of remote stores."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tvkd" / "indexes"


@pytest.fixture
def place(storage, index_folder, monkeypatch) -> str:
    """URL of a store that is not there yet; the environment says how to reach it."""
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    return new_place()
