"""Fuzzed bodies, truncations and header games at the socket: no 5xx, no growing memory, and the engine lives."""

from running_server import start_server
from socket_fuzz import run


def test_whatever_comes_to_the_socket_the_server_keeps_its_memory_and_never_fails(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", "--transfer-seconds", "5")
    try:
        answered = run(server, 3000, 1, print)
    finally:
        server.kill()
    # The cases are no noise alone: some are right requests still, and some reach each kind of refusal.
    assert {("body", b"200"), ("body", b"422"), ("header", b"200"), ("header", b"400")} <= answered.keys()
