"""The trainer side: an HTTP client that checks answers, value sources, the TVKD trainer.

Names are imported when they are first used, so that the client costs no torch and no TRL.
"""

import importlib
from typing import Any

_MODULES = {
    "AsyncTeacherClient": "tvkd_client.async_http",
    "Columns": "tvkd_client.dataset",
    "ServerSource": "tvkd_client.source",
    "Shaping": "tvkd_shared.shaping",
    "StoreSource": "tvkd_client.source",
    "TVKDConfig": "tvkd_client.config",
    "TVKDTrainer": "tvkd_client.trainer",
    "TeacherClient": "tvkd_client.http",
    "ValueSource": "tvkd_client.source",
    "load_preferences": "tvkd_client.dataset",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
