"""Files outside of ``docs/`` that are pages of the site, and links between all of them.

Links are written as they lead from file to file in the repository. MkDocs knows the folder
``docs/`` alone, so that other files get a place there, and links are rewritten to it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

#: files of the repository by the place that they have on the site
PLACES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/onnx-lowrank-interpolative/README.md": "own-pass.md",
    "models/README.md": "models.md",
    "onnx_lowrank/report/report.schema.json": "report.schema.json",
}

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that stand elsewhere."""
    for source, place in PLACES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the places of files on the site."""
    del config, files
    return with_links(markdown, page.file.src_uri)


def with_links(markdown: str, place: str) -> str:
    """The text of a page with links as the site needs them.

    Args:
        markdown: the page, with links relative to its file in the repository.
        place: of the page on the site, below its root.
    """
    source = next((s for s, p in PLACES.items() if p == place), f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        target = normpath(str(PurePosixPath(source).parent / link[1]))
        there = PLACES.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") else None
        )
        # what has no place stays, and MkDocs names it
        return link[1] if there is None else relpath(there, str(PurePosixPath(place).parent))

    return _LINK.sub(moved, markdown)
