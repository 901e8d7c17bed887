"""The flags of each `tvkd` command, as its own help lists them."""

import re
import subprocess
import sys
from functools import cache

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")


@cache
def flags_of(command: str) -> set[str]:
    done = subprocess.run([sys.executable, "-m", "tvkd.cli", command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {"--help", *FLAG.findall(done.stdout)}
    if command == "train":
        trl = subprocess.run([sys.executable, "-m", "tvkd.cli", "train", "--help-trl"], capture_output=True, text=True)
        # TRL's parser takes --config before it looks at the others, and its help does not list it.
        listed |= {"--config", *FLAG.findall(trl.stdout)}
    return listed
