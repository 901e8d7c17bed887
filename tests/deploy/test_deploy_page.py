"""What docs/deploy.md tells to build, apply and start is there."""

import re
import tomllib

from dockerfile import ROOT, stages
from program import PATHS
from rendering import EVERYTHING, WITH_KEYS

PAGE = (ROOT / "docs" / "deploy.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_image_is_a_target_of_the_dockerfile():
    assert (
        set(re.findall(r"--target (\S+)", PAGE))
        == {"server-cpu", "server-vllm", "trainer"}
        <= stages(DOCKERFILE).keys()
    )


def test_every_build_argument_is_one_and_every_extra_is_there():
    assert set(re.findall(r"--build-arg (\w+)=", PAGE)) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    named = {*re.findall(r"EXTRA=([\w-]+)", PAGE + DOCKERFILE), *re.findall(r"\.\[([\w-]+)\]", DOCKERFILE)}
    assert named and named <= EXTRAS.keys()


def test_every_folder_that_is_applied_renders_and_every_file_is_there():
    applied = set(re.findall(r"-k deploy/kubernetes/([\w/-]+)", PAGE))
    assert applied == set(EVERYTHING) - set(WITH_KEYS)
    assert [path for path in re.findall(r"-f (deploy/\S+?)`? ", PAGE) if not (ROOT / path).exists()] == []


def test_the_proxy_asks_a_path_of_the_server():
    assert set(re.findall(r"GET (\S+)", (ROOT / "deploy" / "haproxy.cfg").read_text())) <= PATHS
