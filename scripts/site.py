"""What `mkdocs.yml` adds to the pages of docs/: the start page, which is README, and one API page for each package.

Links out of docs/ work on a code host and lead nowhere on the site, so they are shown there as plain text.
"""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from file_list import PACKAGES, ROOT, modules_of

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file of docs/ holds."""
    start = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=start))
    for package in PACKAGES:
        modules = "\n\n".join(f"::: {name}" for name in modules_of(package))
        files.append(File.generated(config, f"api/{package.name}.md", content=f"# {package.name}\n\n{modules}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside docs/ into their text."""

    def shown(link: re.Match[str]) -> str:
        text, target = link.groups()
        inside = ":" in target or target.startswith("#") or files.get_file_from_path(target.partition("#")[0])
        return link[0] if inside else text

    return LINK.sub(shown, markdown) if not page.file.src_uri.startswith("api/") else markdown


def on_config(config: MkDocsConfig) -> Any:
    """Rebuild on a change of what the generated pages are made from, in `mkdocs serve`."""
    config.watch.extend([str(ROOT / "README.md"), *map(str, PACKAGES)])
    return config
