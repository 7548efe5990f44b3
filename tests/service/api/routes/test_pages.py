"""The pages ask for nothing that is not on this server."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import pytest

from service.api.pages import DASHBOARD, FILES, PAGES
from tests.deploy.files import project
from tests.service.http_client import Service, failed, opened

KINDS = ("text/javascript", "text/css", "application/json", "image/svg+xml", "text/html")
MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function")
LOADING = {"src", "href", "srcset", "action", "data", "poster"}


class Asked(HTMLParser):
    """What a page loads, and whether it has scripts or styles of its own, which its policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.urls += [value or "" for name, value in attributes if name in LOADING]
        self.inline += [name for name in given if name.startswith("on")]
        self.inline += [tag] if tag == "script" and "src" not in given else []


@pytest.mark.parametrize(
    ("path", "loaded"),
    [
        ("/docs", {"/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js", "/openapi.json"}),
        ("/redoc", {"/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js", "/openapi.json"}),
        ("/", {"dashboard/main.js", "dashboard/base.css", "dashboard/vendor/preact.js"}),
    ],
)
async def test_no_page_asks_anything_but_this_server(path: str, loaded: set[str]) -> None:
    async with opened(api_keys="secret") as service:  # and no page needs a key
        page = await service.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        asked = Asked(page.text)
        assert asked.inline == []
        assert loaded <= set(asked.urls)
        for url in asked.urls:
            if url == "data:,":
                continue
            parts = urlsplit(url)
            assert (parts.scheme, parts.netloc) == ("", ""), url
            answer = await service.get(urljoin("/", url))
            assert answer.status_code == 200, url
            assert answer.headers["content-type"].split(";")[0] in KINDS


async def test_the_policy_of_a_page_lets_scripts_and_requests_go_to_this_server_alone(service: Service) -> None:
    for path in FILES:
        answer = await service.get(path)
        policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert "http" not in str(policy)
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_first_page_announces_what_it_imports_and_no_more() -> None:
    """What is announced is fetched at once, beside the script that needs it; charts and other pages come when they are shown."""
    folder = PAGES / "dashboard"
    needed, found = {"main.js"}, set[str]()
    while needed - found:
        name = (needed - found).pop()
        found.add(name)
        imports = re.findall(r'^import [^"]*"\./([\w./]+)";', (folder / name).read_text(), flags=re.MULTILINE)
        needed |= {(folder / name).parent.joinpath(path).relative_to(folder).as_posix() for path in imports}
    announced = re.findall(r'<link rel="modulepreload" href="dashboard/([\w./]+)">', (folder / "index.html").read_text())
    assert sorted(announced) == sorted(found - {"main.js"})
    assert not {"vendor/uplot.js", "chart.js", "bandit.js", "whatif.js", "operations.js"} & found


def test_styles_and_the_start_load_nothing_from_elsewhere() -> None:
    assert "@import" not in (PAGES / "swagger-ui.css").read_text()
    assert "url(http" not in (PAGES / "swagger-ui.css").read_text().replace('"', "").replace("'", "")
    assert "http" not in (PAGES / "start.js").read_text()
    assert "validatorUrl: null" in (PAGES / "start.js").read_text()  # else every document is sent to a validator


def test_the_pages_are_in_the_wheel_with_their_licences() -> None:
    assert "pages/**" in project()["tool"]["setuptools"]["package-data"]["service.api"]
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"} <= {path.name for path in PAGES.iterdir()}
    vendored = {path.name for path in (PAGES / "dashboard" / "vendor").iterdir()}
    assert {"LICENSE.uplot.txt", "LICENSE.htm.txt", "LICENSE.preact.txt"} <= vendored


async def test_the_dashboard_allows_nothing_inline_and_makes_no_markup_of_text(service: Service) -> None:
    for path in ("/", *DASHBOARD):
        answer = await service.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "data:" not in policy
        assert "require-trusted-types-for 'script'" in policy
    for path, file in DASHBOARD.items():
        if file.suffix == ".js" and "/vendor/" not in path:
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", file.read_text()
            ), path


async def test_a_file_that_is_the_same_is_not_sent_again(service: Service) -> None:
    first = await service.get("/dashboard/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await service.ask("GET", "/dashboard/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/dashboard/index.html", "/dashboard/vendor/README.md", "/dashboard/none.js", "/dashboard"])
async def test_what_is_no_part_of_the_dashboard_is_not_found(service: Service, path: str) -> None:
    assert failed(await service.get(path)) == (404, "not_found")


async def test_metrics_count_the_dashboard_as_one_route(service: Service) -> None:
    for path in DASHBOARD:
        await service.get(path)
    text = (await service.get("/metrics")).text
    assert f'nextarm_requests_total{{method="GET",route="/dashboard/{{file}}",status="200"}} {len(DASHBOARD)}.0' in text
