"""Why an engine's process failed: vLLM logs the exception there, and tells the server only that there was one."""

import logging
import os
import tempfile
from pathlib import Path

from tvkd_server.teachers.checkpoint import first_line

_FILE = "TVKD_ENGINE_FAILURES"
"""The variable by which the server names the file to the engine's processes."""

_NO_CAUSE = "WorkerProc initialization failed due to an exception in a background process"
"""What vLLM says of a worker's end. It is the first failure where the worker itself could say nothing."""


class Failures(logging.Handler):
    """Appends a line for each exception that vLLM logs in this process to the file that the server named."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the exception's first line. On another machine, or after the server's end, there is no file."""
        if record.exc_info and record.exc_info[1] is not None and (path := os.environ.get(_FILE)):
            try:
                with Path(path).open("a") as file:
                    file.write(first_line(record.exc_info[1]) + "\n")
            except OSError:
                self.handleError(record)


def note_failures() -> None:
    """In a process of the engine: note what vLLM logs from now on. A second call changes nothing."""
    logger = logging.getLogger("vllm")
    if _FILE in os.environ and not any(isinstance(handler, Failures) for handler in logger.handlers):
        logger.addHandler(Failures())


class FailureFile:
    """The server's end of it: the file that the processes of one engine write."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile("r", prefix="tvkd-engine-")  # noqa: SIM115 - open as long as the engine
        os.environ[_FILE] = self._file.name

    def reason(self, error: BaseException) -> str:
        """The first failure, which the others follow from, or what the server was told when none was written."""
        self._file.seek(0)
        reason = self._file.readline().strip() or first_line(error)
        if not reason.startswith(_NO_CAUSE):
            return reason
        return "a process of the engine ended without an exception, as it does when native code crashes or memory lacks"
