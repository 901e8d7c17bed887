"""How object storage is reached: credentials, schemes, processes; what cannot be is one line, at once."""

import multiprocessing
import os
import sys
import time
from contextlib import closing

import pytest
from stored_records import bits, key_of, record_of

from object_storage import KEY, SECRET, new_place, serving
from tvkd_client.source import StoreSource
from tvkd_shared.errors import InvalidRequest, NoStore, StoreUnavailable
from tvkd_shared.key import completion_keys
from tvkd_shared.store import StoreReader, open_store
from tvkd_shared.store.bucket import Bucket

MINE = ("AWS_", "AZURE_", "GOOGLE_")


@pytest.fixture(params=["seaweedfs"])
def storage(request):
    """moto asks nobody for credentials."""
    with serving(request.param) as running:
        yield running


@pytest.fixture
def nothing_set(monkeypatch, tmp_path):
    for name in os.environ:
        if name.startswith(MINE):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def refused(kind, place, error, *words):
    """One line with those words, within seconds."""
    began = time.monotonic()
    with pytest.raises(error) as raised:
        kind(place)
    line = str(raised.value)
    assert time.monotonic() - began < 5
    assert "\n" not in line and place in line and all(word in line for word in words), line


@pytest.mark.parametrize("kind", [open_store, StoreReader])
def test_wrong_credentials_are_one_line(place, monkeypatch, kind):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused(kind, place, StoreUnavailable, "403 Forbidden", "SignatureDoesNotMatch")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    refused(kind, place, StoreUnavailable, "403 Forbidden", "InvalidAccessKeyId")


def test_a_profile_of_awss_own_files_is_used(place, monkeypatch, tmp_path):
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[team]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_PROFILE", "team")
    with closing(open_store(place)) as store:
        store.put("teacher", [(key_of(1), record_of(1))])
        assert bits(store.get([key_of(1)])[0]) == bits(record_of(1))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused(StoreReader, place, InvalidRequest, "AWS_PROFILE", "nobody")


def test_a_profile_without_boto3_says_what_to_install(nothing_set, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "team")
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
    with pytest.raises(InvalidRequest, match="AWS_PROFILE is set, which needs boto3: pip install boto3"):
        StoreReader("s3://bucket/values")


def test_a_bucket_that_is_not_there_is_one_line(index_folder, monkeypatch):
    with serving("moto") as running:  # SeaweedFS makes one
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        refused(open_store, "s3://nobody-made-this/values", NoStore, "no such bucket")
        refused(StoreReader, "s3://nobody-made-this/values", StoreUnavailable, "404 Not Found (NoSuchBucket)")


def test_a_reader_says_that_there_is_no_store(place):
    refused(StoreReader, place, NoStore, "there is no store")


def test_a_service_without_conditional_writes_is_refused(index_folder, monkeypatch):
    with serving("rclone") as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        refused(open_store, new_place(), StoreUnavailable, "ignores conditional writes (If-None-Match)")


@pytest.mark.parametrize("scheme", ["http", "file", "ftp"])
@pytest.mark.parametrize("kind", [open_store, StoreReader])
def test_other_schemes_are_refused(kind, scheme):
    refused(kind, f"{scheme}://place/values", InvalidRequest, f"{scheme} is none of s3, gs, az")


def test_google_and_azure_are_named_as_their_users_name_them(nothing_set, monkeypatch):
    assert str(Bucket("gs://bucket/values")) == "gs://bucket/values"
    refused(Bucket, "az://container/values", InvalidRequest, "Account must be specified")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "team")
    assert str(Bucket("az://container/values")) == "az://container/values"


def fetched(source, answers):
    try:
        answers.put([bits(record) for record in source.fetch([[1, 2]], [[3]])])
    except StoreUnavailable as error:
        answers.put(str(error))


def test_a_source_crosses_spawn_and_a_fork_after_use_is_refused_and_does_not_hang(place):
    with closing(open_store(place)) as store:
        store.add_teacher("teacher", {})
        [key] = completion_keys("teacher", [1, 2], [[3]])
        store.put("teacher", [(key, record_of(0))])
    source = StoreSource(place)
    here = [bits(record) for record in source.fetch([[1, 2]], [[3]])]
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        answers = context.SimpleQueue()
        child = context.Process(target=fetched, args=(source, answers))
        child.start()
        child.join(30)
        child.kill()
        assert child.exitcode == 0
        there = answers.get()
        assert there == here or (method == "fork" and "dataloader_multiprocessing_context: spawn" in there)
