"""vLLM's plug-in entry point: `pyproject.toml` names it, and vLLM calls it in each of its processes."""

import multiprocessing
import os
import threading

from tvkd_server.teachers.vllm_engine.failures import note_failures

SERVER = "TVKD_SERVER_PROCESS"
"""The variable by which the server's process tells the engine's process who its parent is."""


def register() -> None:
    """Give vLLM a value model for each causal LM that it knows. vLLM may call this more than once in a process."""
    _end_with_the_server()
    note_failures()
    from tvkd_server.teachers.vllm_engine import private  # noqa: PLC0415 - vLLM calls this at its own import

    private.register_value_models()


def _end_with_the_server() -> None:
    """In the engine's process: end when the server does. vLLM's own would live on and hold the device's memory."""
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(SERVER) != str(parent.pid):
        return
    del os.environ[SERVER]  # the engine's workers have a watch of vLLM's own, on the engine

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="tvkd-server-watch", daemon=True).start()
