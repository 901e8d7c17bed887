"""TRL's private parts are used in one file of the client, and the versions of TRL are written once."""

import ast
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import Trainer
from trl.scripts.utils import TrlParser
from trl.trainer.dpo_trainer import DPOTrainer

import tvkd_client
from tvkd_shared.versions import supported

CLIENT = Path(tvkd_client.__file__).parent
FILES = sorted(path for path in CLIENT.glob("*.py") if path.name != "trl_private.py")


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_of_trl() -> set[str]:
    classes = (DPOTrainer, Trainer, TrlParser)
    of_classes = {name for kind in classes for name in dir(kind)}
    of_instances = {name for kind in classes for name in re.findall(r"\bself\.(_\w+)", inspect.getsource(kind))}
    return set(filter(private, of_classes | of_instances))


def names_used(source: str) -> set[str]:
    """Attributes read, written or given as text, and names defined in a class: every way to reach a private part.

    `self._x` in a class without a base is that class's own attribute, and so are the names which it defines.
    """
    names, classes = set(), [ast.parse(source)]
    while classes:
        top = classes.pop()
        derived = isinstance(top, ast.ClassDef) and bool(top.bases)
        nodes = list(top.body)
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                classes.append(node)
                continue
            nodes.extend(ast.iter_child_nodes(node))
            if isinstance(node, ast.Attribute):
                own = isinstance(top, ast.ClassDef) and not derived and getattr(node.value, "id", "") == "self"
                names |= set() if own else {node.attr}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
            elif derived and isinstance(node, ast.FunctionDef | ast.Name):
                names.add(node.name if isinstance(node, ast.FunctionDef) else node.id)
    return set(filter(private, names))


def test_the_known_private_parts_are_among_those_looked_for():
    known = {"_tokenizer", "_metrics", "_prepare_dataset", "_precompute_ref_logps", "_send_telemetry", "_tag_names"}
    assert known <= private_names_of_trl()
    derived = "class A(B):\n    _name = 1\n    def _x(self):\n        self._metrics = getattr(self, '_y')._z"
    assert names_used(derived) == {"_name", "_x", "_metrics", "_y", "_z"}
    assert names_used(derived.replace("(B)", "")) == {"_y", "_z"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_other_file_touches_what_trl_keeps_private(path):
    assert not names_used(path.read_text(encoding="utf-8")) & private_names_of_trl()


def test_the_versions_of_trl_are_those_of_the_package_s_extra():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (written,) = re.findall(r'"trl\[peft\]([^"]+)"', pyproject)
    assert sorted(str(supported("trl")).split(",")) == sorted(written.split(","))
    assert version("trl") in supported("trl")
    assert not any(re.search(r"1\.1[67][^.]*<", path.read_text(encoding="utf-8")) for path in CLIENT.glob("*.py"))
