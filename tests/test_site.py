"""The site that `make docs` builds: no warning, every page in it, and nothing that is loaded from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import readme

ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*?\bhref=["']?(?:https?:)?//"""
    r"""|@import|url\(\s*["']?(?:https?:)?//"""
    r"""|\b(?:fetch|importScripts)\(\s*["'](?:https?:)?//""",
    re.IGNORECASE,
)
"""What makes a browser load something from another server while a page is shown; links that a reader follows do not."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=readme.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_on_the_site_and_in_its_navigation(site: Path) -> None:
    pages = {str(page.relative_to(readme.ROOT).with_suffix(".html")) for page in readme.pages()}
    assert [page for page in sorted(pages) if not (site / page).is_file()] == []
    home = (site / "docs" / "index.html").read_text()
    sidebar = home[home.index('class="sidebar-tree"') : home.index("</aside>")]
    targets = re.findall(r'href="([^"#]+)"', sidebar)
    linked = {str((site / "docs" / target).resolve().relative_to(site.resolve())) for target in targets}
    assert pages - linked == {"docs/index.html"}, "the home page is the brand above"


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".js")]
    assert len(files) > len(readme.pages())
    loaded = {str(path.relative_to(site)): ELSEWHERE.findall(path.read_text()) for path in files}
    assert {path: found for path, found in loaded.items() if found} == {}


def test_a_page_that_would_load_something_is_noticed() -> None:
    for text in (
        '<script defer src="https://x.org/a.js">',
        "<link rel=stylesheet href=//x.org/a.css>",
        "url('http://x.org/f.woff')",
    ):
        assert ELSEWHERE.search(text)
    assert not ELSEWHERE.search('<a href="https://x.org">x</a> <script src="_static/a.js"> url("data:image/svg+xml")')


def test_the_folder_leads_to_the_home_page(site: Path) -> None:
    assert "url=docs/index.html" in (site / "index.html").read_text()
