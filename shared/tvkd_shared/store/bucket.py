"""A store's files under a prefix in object storage: S3 and what speaks it, Google Cloud Storage, Azure."""

import hashlib
import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import from_url
from platformdirs import user_cache_path

from tvkd_shared.errors import InvalidRequest, NoStore, StoreUnavailable
from tvkd_shared.store.files import AT_ONCE, File

REQUEST_SECONDS = 20.0
"""How long one request may take; the library sends what is large in several."""
RETRY_SECONDS = 30.0
"""How long after it began an operation is tried again."""
_CUT_ANSWERS = 3
"""Times that a list is asked for again after half of it came, which the library does not do."""

_threads_of: int | None = None
"""The process in which the library has started its threads. They do not survive a fork: a child would wait for ever."""

_MAY_PASS = (exceptions.GenericError, exceptions.AlreadyExistsError, exceptions.PreconditionError)

_NO_CREDENTIALS = "http://169.254.169.254"
"""Where a machine of AWS is asked for its role, when nothing else says who asks."""


class _Missing(FileNotFoundError):
    """An object that is not there."""


class Bucket:
    """See `Files`. Credentials, region and endpoint come from the usual variables or the machine's role.

    Failures that pass are tried again, RETRY_SECONDS long. A `create` whose answer was lost may be tried again after it
    succeeded: what is found there then is compared with what was to be written.
    """

    remote = True

    def __init__(self, url: str) -> None:
        self._url = url
        endpoint = _endpoint(url) or ""
        self.index = user_cache_path("tvkd") / "indexes" / hashlib.sha256(f"{endpoint} {url}".encode()).hexdigest()[:32]
        try:
            self._store: Any = from_url(url, **_options(url))
        except (exceptions.BaseError, ValueError, TypeError) as error:
            raise InvalidRequest(f"store {url}: {_first_line(error)}") from error

    def __str__(self) -> str:
        return self._url

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        with self._faults("read"):
            try:
                if start < 0 and self._url.startswith("az:"):  # which has no ranges from the end
                    start = max(0, obstore.head(self._store, name)["size"] + start)
                options: Any = None
                if start < 0:
                    options = {"range": {"suffix": -start}}
                elif stop is not None:
                    options = {"range": (start, stop)}
                elif start:
                    options = {"range": {"offset": start}}
                return bytes(obstore.get(self._store, name, options=options).bytes())
            except FileNotFoundError as error:
                raise _Missing(f"{self._url}/{name} is not there") from error

    def create(self, name: str, content: bytes) -> bool:
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            with self._faults("written"):
                try:
                    obstore.put(self._store, name, content, mode="create")
                except _MAY_PASS:
                    if time.monotonic() > deadline:
                        raise
                    # A conflict, or no answer: there may be what was to be written, or another's, or nothing yet.
                    with suppress(FileNotFoundError):
                        return self.read(name) == content
                else:
                    return True
            time.sleep(0.1)

    def write(self, contents: Mapping[str, bytes]) -> None:
        *others, last = contents
        with self._faults("written"), ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(obstore.put, self._store, name, contents[name]) for name in others]:
                done.result()
            obstore.put(self._store, last, contents[last])

    def names(self, folder: str, after: str = "") -> list[str]:
        # Flat folders only are asked for by name; what lies deeper is a folder's own.
        start = len(folder) + 1
        found = self._listed(f"{folder}/", f"{folder}/{after}" if after else None)
        return sorted({meta["path"][start:].split("/")[0] for meta in found})

    def stamp(self, folder: str, name: str) -> object:
        return object()  # only a listing tells

    def walk(self, folder: str) -> Iterator[File]:
        for meta in self._listed(f"{folder}/" if folder else None):
            yield File(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def _listed(self, prefix: str | None, offset: str | None = None) -> list[Any]:
        deadline = time.monotonic() + RETRY_SECONDS
        with self._faults("read"):
            for left in itertools.count(_CUT_ANSWERS, -1):
                try:
                    return [meta for chunk in obstore.list(self._store, prefix, offset=offset) for meta in chunk]
                except exceptions.GenericError:
                    if not left or time.monotonic() > deadline:
                        raise
                time.sleep(0.1)
        raise AssertionError  # for the type checker

    def remove(self, names: list[str]) -> None:
        with self._faults("written"), ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(self._remove, name) for name in names]:
                done.result()

    def _remove(self, name: str) -> None:
        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return

    @contextmanager
    def _faults(self, task: str) -> Iterator[None]:
        global _threads_of  # noqa: PLW0603 - what it speaks of is the process
        if _threads_of not in (None, os.getpid()):
            raise StoreUnavailable(
                f"the store {self._url} cannot be {task} in a process forked from one that used object storage: start "
                "it by spawn (in training, dataloader_multiprocessing_context: spawn), or have no worker processes"
            )
        _threads_of = os.getpid()
        try:
            yield
        except (StoreUnavailable, _Missing):
            raise
        except FileNotFoundError as error:
            # Not said of an object, so of what holds them all.
            raise NoStore(f"the store {self._url} cannot be {task}: there is no such bucket") from error
        except (exceptions.BaseError, OSError, ValueError, RuntimeError) as error:
            raise StoreUnavailable(f"the store {self._url} cannot be {task}: {_first_line(error)}") from error


def _options(url: str) -> dict[str, Any]:
    """How to reach it. The library finds most in the environment; not an endpoint without TLS, nor an AWS profile."""
    client: dict[str, Any] = {"timeout": timedelta(seconds=REQUEST_SECONDS)}
    options: dict[str, Any] = {
        "retry_config": {"max_retries": 1000, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
        "client_options": client,
    }
    if endpoint := _endpoint(url):
        options["config"] = {"endpoint": endpoint, "virtual_hosted_style_request": False}
        client["allow_http"] = endpoint.startswith("http://")
    if url.startswith("s3:") and os.environ.get("AWS_PROFILE"):
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 - optional

            options["credential_provider"] = Boto3CredentialProvider()
        except ImportError as error:
            raise InvalidRequest("AWS_PROFILE is set, which needs boto3: pip install boto3") from error
        except Exception as error:  # boto3's own: it is not there to be named
            raise InvalidRequest(f"AWS_PROFILE is set: {_first_line(error)}") from error
    return options


def _endpoint(url: str) -> str | None:
    if not url.startswith("s3:"):
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _first_line(error: BaseException) -> str:
    """What happened, with the service's own code for it, and without the rest of its answer."""
    text = str(error).strip() or type(error).__name__
    if _NO_CREDENTIALS in text:
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    code = re.search(r"<Code>(\w+)</Code>", text)
    return text.splitlines()[0].partition(": <")[0] + (f" ({code[1]})" if code else "")
