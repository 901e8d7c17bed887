"""Write docs/files.md, which has the first line of each module's docstring: `python scripts/file_list.py`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT / path for path in ("shared/tvkd_shared", "server/tvkd_server", "client/tvkd_client", "command/tvkd")]
PAGE = ROOT / "docs" / "files.md"
HEAD = """# The files

Each module of tvkd with the first line of its docstring. `python scripts/file_list.py` writes this page, and a test
checks that it is current.
"""


def first_line(path: Path) -> str:
    """The first line of a module's docstring. Raises ValueError when the module has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring; write one line that says what it is for")
    return docstring.partition("\n")[0]


def modules_of(package: Path) -> list[str]:
    """The dotted names of a package and its modules that have a docstring, in the order of their paths."""
    paths = [path for path in sorted(package.rglob("*.py")) if ast.get_docstring(ast.parse(path.read_text()))]
    parts = [path.relative_to(package.parent).with_suffix("").parts for path in paths]
    return [".".join(names[:-1] if names[-1] == "__init__" else names) for names in parts]


def file_list() -> str:
    """The page, as markdown."""
    folders = sorted({path.parent for package in PACKAGES for path in package.rglob("*.py")}, key=_order)
    sections = []
    for folder in folders:
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        rows = "".join(f"| `{path.name}` | {first_line(path).replace('|', chr(92) + '|')} |\n" for path in modules)
        if rows:
            about = folder / "__init__.py"
            docstring = ast.get_docstring(ast.parse(about.read_text())) if about.exists() else None
            line = f"{docstring.partition(chr(10))[0]}\n\n" if docstring else ""
            sections.append(f"\n## {folder.relative_to(ROOT)}\n\n{line}| file | what it is for |\n|---|---|\n{rows}")
    return HEAD + "".join(sections)


def _order(folder: Path) -> tuple[int, Path]:
    return next(n for n, package in enumerate(PACKAGES) if folder.is_relative_to(package)), folder


if __name__ == "__main__":
    PAGE.write_text(file_list())
