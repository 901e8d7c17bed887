"""What `tvkd_client` offers under its own name."""

import subprocess
import sys

import tvkd_client


def test_every_exported_name_resolves():
    for name in tvkd_client.__all__:
        assert getattr(tvkd_client, name).__name__ == name


def test_the_client_costs_no_torch():
    code = "import sys; from tvkd_client import TeacherClient; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
