"""A store that a server filled, with the pairs that it holds."""

import json

import pytest
from store_commands import PAIRS

from running_server import start_server
from tvkd.cli import main as tvkd


@pytest.fixture(scope="session")
def filled(tiny_teacher, tmp_path_factory):
    """A folder with the data set, and the store `values` that a server filled and closed. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    server = start_server(tiny_teacher, folder / "values", "--seal-bytes", "500")
    data = ["--dataset", f"{folder}/pairs.jsonl", "--tokenizer", str(tiny_teacher)]
    for temperatures in ("1.0", "1.0,2.0"):
        assert tvkd(["prefetch", "--server", server.url, *data, "--temperatures", temperatures]) == 0
    assert server.stop() == 0
    return folder
