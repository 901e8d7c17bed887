"""Programs that check deploy/ and are not Python modules."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def installed(name: str, package: str) -> str:
    """The program's path, here or on the machine. Without it a test is skipped; in CI it fails."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        missing = f"{name} is not installed ({package}): run make deploy-tools"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found
