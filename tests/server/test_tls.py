"""TLS by two flags, with a certificate that a private authority could have made."""

import re
import subprocess

import httpx
import pytest

from running_server import refusal_of, start_server
from tvkd_client.http import TeacherClient
from tvkd_server.settings import ServeSettings
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.settings import from_command_line
from tvkd_shared.wire import TokenItem


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with two self-signed certificates for 127.0.0.1, a.crt and b.crt, and their keys."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in "ab":
        made = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=IP:127.0.0.1"
        subprocess.run([*made.split(), "-keyout", f"{name}.key", "-out", f"{name}.crt"], cwd=folder, check=True)
    return folder


def test_a_client_that_trusts_the_certificate_is_served(certificates, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "a.crt"))
    flags = ["--tls-cert", certificates / "a.crt", "--tls-key", certificates / "a.key"]
    server = start_server(tiny_teacher, tmp_path / "values", *flags)
    try:
        assert server.url.startswith("https://")
        client = TeacherClient(server.url)
        ((values,),) = client.potentials([TokenItem(prompt_token_ids=[9], completions=[[10, 11]])])
        assert values is not None and client.teacher().id
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "b.crt"))
        with pytest.raises(InvalidRequest, match=r"not trusted: self-signed .* set SSL_CERT_FILE"):
            TeacherClient(server.url).teacher()
        for path in (tmp_path / "nothing", certificates / "a.key"):
            monkeypatch.setenv("SSL_CERT_FILE", str(path))
            with pytest.raises(InvalidRequest, match=f"SSL_CERT_FILE {re.escape(str(path))} cannot be used"):
                TeacherClient(server.url).teacher()
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{server.url}/healthz".replace("https", "http"))
        assert server.stop() == 0  # though the client's connection is open: within 30 seconds
    finally:
        server.kill()


def test_files_that_do_not_fit_are_one_line(certificates, tiny_teacher, tmp_path):
    start = ["--model", tiny_teacher, "--store", tmp_path / "values", "--port", "0"]
    cert = certificates / "a.crt"
    for flag in ("--tls-cert", "--tls-key"):
        with pytest.raises(InvalidRequest, match="give both, or neither"):
            from_command_line(ServeSettings, ["--model", "m", flag, str(cert)])
    for tls_key, reason in ((certificates / "b.key", "mismatch"), (tmp_path / "nothing", "No such file")):
        line = refusal_of(*start, "--tls-cert", cert, "--tls-key", tls_key)
        assert reason in line and str(tls_key) in line
