"""HTTP by hand: requests that no client library would send."""

import socket

import httpx

HEAD = b"POST /v1/potentials HTTP/1.1\r\nHost: tvkd\r\nContent-Type: application/json\r\n"


def connect(server, sent=b"", **options):
    address = httpx.URL(server.url)
    connection = socket.socket()
    for option, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
    connection.settimeout(60)
    connection.connect((address.host, address.port))
    connection.sendall(sent)
    return connection


def read(connection):
    """All that comes until the server closes or cuts the connection."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
