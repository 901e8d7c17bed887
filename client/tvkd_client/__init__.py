"""The trainer side: an HTTP client that checks answers, value sources, the TVKD trainer.

Names are imported when they are first used, so that the client costs no torch and no TRL.
"""

import importlib
from typing import Any

_MODULES = {
    "Shaping": "reading",
    "ServerSource": "source",
    "StoreSource": "source",
    "TVKDConfig": "config",
    "TVKDTrainer": "trainer",
    "TeacherClient": "http",
    "ValueSource": "source",
    "load_preferences": "dataset",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
