"""Which objective helps a small student, in a world whose true reward is known: `python -m studies.known_reward`."""

import os

# The libraries' progress bars would hide the study's own lines. tqdm reads this once, when it is imported.
os.environ.setdefault("TQDM_DISABLE", "1")
