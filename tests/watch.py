"""Whom a Python process calls: an audit hook in it writes every address down.

An audit hook sees the sockets of Python's own socket module only; a C library that opens one itself goes unseen.
"""

import os
import subprocess
import sys
from pathlib import Path

_HOOK = """
import os, sys
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if not isinstance(arguments[1], tuple):
            return  # the path of a Unix socket, or a socket that is connected already
        host = arguments[1][0]
    else:
        return
    with open(os.environ["WATCHED"], "a") as log:
        log.write(f"{host.decode() if isinstance(host, bytes) else host}\\n")
sys.addaudithook(watch)
"""

_LOCAL = {"127.0.0.1", "::1", "localhost", "None"}  # None is what a server listens on when it names no host

_PROBE = """
import socket
socket.getaddrinfo("localhost", 80)
try:
    socket.socket(type=socket.SOCK_DGRAM).connect(("192.0.2.1", 9))  # sends nothing
except OSError:
    pass
"""


class Watch:
    """`environment` has Python processes, and those that they start, write their calls down; the hub is allowed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_HOOK)
        self._log = folder / "called"
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        self.environment = {"PYTHONPATH": path, "WATCHED": str(self._log), "HF_HUB_OFFLINE": "0"}
        subprocess.run([sys.executable, "-c", _PROBE], env=os.environ | self.environment, check=True)
        assert self.called() == ["localhost", "192.0.2.1"] and self.strangers() == ["192.0.2.1"], "the watch is blind"
        self._log.write_text("")

    def called(self) -> list[str]:
        """Hosts looked up or connected to, in order."""
        return self._log.read_text().splitlines()

    def strangers(self) -> list[str]:
        """Those that are not this machine's loopback."""
        return [host for host in self.called() if host not in _LOCAL]
