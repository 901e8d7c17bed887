"""`tvkd serve`: settings, socket, signals and exit code around the app."""

import logging
import resource
import signal
import socket
import sys
from types import FrameType

import uvicorn

from tvkd_server import logs
from tvkd_server.app import create_app
from tvkd_server.connection import KEEP_ALIVE_SECONDS, bounded
from tvkd_server.readiness import Readiness
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.loading import load_teacher
from tvkd_shared.errors import InvalidRequest


class Serve(ServeSettings, cli_prog_name="tvkd serve"):
    __doc__ = ServeSettings.__doc__

    def run(self) -> int:
        """Serve until a signal. Raises what the teacher or the store raised when either cannot be opened, and
        TeacherUnavailable when the teacher's engine died."""
        logs.configure(self.log_format)
        # Large requests are decoded in threads, and every hand-over to the event loop waits this long at most.
        sys.setswitchinterval(0.001)
        _allow_open_files(self.max_connections)
        app = create_app(
            self,
            load_teacher=lambda: load_teacher(self),
            on_failure=lambda: setattr(server, "should_exit", True),
        )
        readiness: Readiness = app.state.readiness
        config = uvicorn.Config(
            app,
            http=bounded(self.max_connections, self.transfer_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=self.drain_seconds,
            ssl_certfile=self.tls_cert,
            ssl_keyfile=self.tls_key,
        )
        try:
            config.load()
        except OSError as error:
            raise InvalidRequest(
                f"--tls-cert {self.tls_cert} with --tls-key {self.tls_key} cannot be used: {error}; "
                "give a certificate and its private key, both as PEM files that the server may read"
            ) from error
        server = _Server(config, readiness)
        app.state.metrics.connections.set_function(lambda: len(server.server_state.connections))
        listener = _listen(self.host, self.port)
        host, port = listener.getsockname()[:2]
        scheme, host = "https" if config.is_ssl else "http", f"[{host}]" if ":" in host else host
        logging.getLogger(__name__).info("listening on %s://%s:%s", scheme, host, port)
        # What uvicorn restores when it is done: a second signal does not cut off the end.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        server.run(sockets=[listener])
        if readiness.failure:
            raise readiness.failure
        return 0


class _Server(uvicorn.Server):
    """Not ready from the signal on, while requests in flight are finished; then an ordinary end, exit code 0."""

    def __init__(self, config: uvicorn.Config, readiness: Readiness) -> None:
        super().__init__(config)
        self._readiness = readiness

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._readiness.draining = True
        # Not uvicorn's own: it would raise the signal again at the end. A second Ctrl-C does not wait for requests.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _allow_open_files(connections: int) -> None:
    """Raise the process's limit on open files, often 1,024, so that connections leave the store its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, connections + 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidRequest(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --host or --port"
        ) from error
    # An answer is two writes, head and body: without this the second waits 40 ms for the client's delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
