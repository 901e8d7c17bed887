"""What the server logs: lines for people, or lines of JSON with one for each request for values."""

import logging
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from tvkd_server.timing import CURRENT

REQUESTS = logging.getLogger("tvkd_server.requests")


def configure(form: Literal["text", "json"]) -> None:
    """Set up the process's log. Nothing that is logged holds an API key, or text or tokens of a request."""
    handler = logging.StreamHandler()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", handlers=[handler])
    for chatty in ("httpx", "httpcore", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if form == "json":
        names = {"levelname": "level", "name": "logger", "exc_info": "traceback"}
        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s",
                rename_fields=names,
                timestamp="time",
                reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's message once more, for a terminal
            )
        )
        handler.addFilter(_name_request)
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 - it takes a second

        disable_progress_bar()  # type: ignore[no-untyped-call]  # that of a model's loading is no JSON
    else:
        REQUESTS.setLevel(logging.WARNING)


def _name_request(record: logging.LogRecord) -> bool:
    timing = CURRENT.get()
    if timing is not None:
        record.request_id = timing.request_id
    return True
