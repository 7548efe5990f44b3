"""Configuration of the site that `make docs` builds from docs/ and the pages beside the README.

The source is the whole repository, so that links work as they do in a checkout; a file that is no page becomes a download.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = "nextarm"
author = "the nextarm developers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"]

myst_heading_anchors = 4  # as GitHub makes them
suppress_warnings = ["misc.highlighting_failure"]  # shown answers hold "..."

html_theme = "furo"
html_title = "nextarm"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}


def add_toctrees(app: Sphinx, name: str, source: list[str]) -> None:
    """Make the sections of the index, with the pages that they link, the navigation of the site."""
    if name == root_doc:
        source[0] = re.sub(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", _with_toctree, source[0], flags=re.MULTILINE | re.DOTALL)


def _with_toctree(section: re.Match[str]) -> str:
    links = re.findall(r"\[([^\]]+)\]\(([^)#]+\.md)\)", section[2])
    entries = "\n".join(f"{title.replace('`', '')} <{link.removesuffix('.md')}>" for title, link in links)
    return f"{section[0]}\n```{{toctree}}\n:hidden:\n:caption: {section[1]}\n\n{entries}\n```\n"


def add_entrance(app: Sphinx, failure: Exception | None) -> None:
    """Lead from the folder of the site to its first page."""
    if failure is None and app.builder.format == "html":
        refresh = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>nextarm</title>{refresh}</html>'
        (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    """Connect both to Sphinx."""
    app.connect("source-read", add_toctrees)
    app.connect("build-finished", add_entrance)
