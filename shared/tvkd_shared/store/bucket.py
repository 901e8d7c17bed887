"""A store's files under a prefix in object storage: S3 and what speaks it, Google Cloud Storage, Azure."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import from_url
from platformdirs import user_cache_path

from tvkd_shared.errors import InvalidRequest, StoreUnavailable
from tvkd_shared.store.files import File

AT_ONCE = 16
"""Requests that one write or removal has under way."""

_RETRIES: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=30)}


class Bucket:
    """See `Files`. Credentials, region and endpoint come from the usual variables or the machine's role.

    Failures that pass are tried again by the library, 30 seconds long. A `create` whose answer was lost may be tried
    again after it succeeded: what is found there then is compared with what was to be written.
    """

    remote = True

    def __init__(self, url: str) -> None:
        self._url = url
        endpoint = _endpoint(url) or ""
        self.index = user_cache_path("tvkd") / "indexes" / hashlib.sha256(f"{endpoint} {url}".encode()).hexdigest()[:32]
        try:
            self._store: Any = from_url(url, retry_config=_RETRIES, **_from_environment(url))
        except (exceptions.BaseError, ValueError, TypeError) as error:
            raise InvalidRequest(f"store {url}: {_first_line(error)}") from error

    def __str__(self) -> str:
        return self._url

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        options: Any = None
        if start < 0:
            options = {"range": {"suffix": -start}}
        elif stop is not None:
            options = {"range": (start, stop)}
        elif start:
            options = {"range": {"offset": start}}
        with self._faults("read"):
            return bytes(obstore.get(self._store, name, options=options).bytes())

    def create(self, name: str, content: bytes) -> bool:
        with self._faults("written"):
            try:
                obstore.put(self._store, name, content, mode="create")
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return self.read(name) == content
            return True

    def write(self, contents: Mapping[str, bytes]) -> None:
        *others, last = contents
        with self._faults("written"), ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(obstore.put, self._store, name, contents[name]) for name in others]:
                done.result()
            obstore.put(self._store, last, contents[last])

    def names(self, folder: str, after: str = "") -> list[str]:
        # Flat folders only are asked for by name; what lies deeper is a folder's own.
        start = len(folder) + 1
        with self._faults("read"):
            found = obstore.list(self._store, f"{folder}/", offset=f"{folder}/{after}" if after else None)
            return sorted({meta["path"][start:].split("/")[0] for chunk in found for meta in chunk})

    def walk(self, folder: str) -> Iterator[File]:
        with self._faults("read"):
            for chunk in obstore.list(self._store, f"{folder}/" if folder else None):
                for meta in chunk:
                    yield File(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def remove(self, names: list[str]) -> None:
        with self._faults("written"), ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(self._remove, name) for name in names]:
                done.result()

    def _remove(self, name: str) -> None:
        try:
            obstore.delete(self._store, name)
        except (exceptions.NotFoundError, FileNotFoundError):
            return

    @contextmanager
    def _faults(self, task: str) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            raise
        except (exceptions.NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(_first_line(error)) from error
        except (exceptions.BaseError, OSError, ValueError, RuntimeError) as error:
            raise StoreUnavailable(f"the store {self._url} cannot be {task}: {_first_line(error)}") from error


def _from_environment(url: str) -> dict[str, Any]:
    """What the library does not find itself: an endpoint without TLS, and a profile of AWS's own files."""
    more: dict[str, Any] = {}
    if endpoint := _endpoint(url):
        more["config"] = {"endpoint": endpoint, "virtual_hosted_style_request": False}
        if endpoint.startswith("http://"):
            more["client_options"] = {"allow_http": True}
    if url.startswith("s3:") and os.environ.get("AWS_PROFILE"):
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 - optional
        except ImportError as error:
            raise InvalidRequest("AWS_PROFILE is set, which needs boto3: pip install boto3") from error
        more["credential_provider"] = Boto3CredentialProvider()
    return more


def _endpoint(url: str) -> str | None:
    if not url.startswith("s3:"):
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
