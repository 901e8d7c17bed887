"""The short form of `benchmarks/soak.py`: bad clients, a failing disk, stops; nothing is lost or hangs."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.timeout(600)
def test_nothing_is_lost_and_nothing_hangs_while_clients_and_the_disk_misbehave():
    done = subprocess.run([sys.executable, SOAK, "--seconds", "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for outcome in ("on demand: ok", "streaming: ok", "overload: overloaded", "bulk: ok", "dying: left", "slow: "):
        assert outcome in done.stdout, done.stdout
