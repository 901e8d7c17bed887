"""The wheel has every file of the packages, also those that are not Python."""

import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent
PACKAGES = ("shared/tvkd_shared", "server/tvkd_server", "client/tvkd_client", "command/tvkd")


def test_the_wheel_has_every_file_of_the_packages(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {path.relative_to((ROOT / package).parent).as_posix() for path in files} <= held
    assert {"tvkd_server/static/index.html", "tvkd_shared/drawing/tokens.js"} <= held
