"""The page of the HTTP API asks for nothing that is not on this server."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from service.api.routes.pages import FILES, PAGES
from tests.deploy.files import project
from tests.service.http_client import Service, opened

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


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_no_page_asks_anything_but_this_server(path: str) -> None:
    async with opened(api_keys="secret") as service:  # and no page needs a key
        page = await service.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        asked = Asked(page.text)
        assert asked.inline == []
        assert {"/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/start.js", "/openapi.json"} <= set(asked.urls)
        for url in asked.urls:
            if url == "data:,":
                continue
            parts = urlsplit(url)
            assert (parts.scheme, parts.netloc) == ("", ""), url
            answer = await service.get(url)
            assert answer.status_code == 200, url
            assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/css", "application/json")


async def test_the_policy_of_a_page_lets_scripts_and_requests_go_to_this_server_alone(service: Service) -> None:
    for path in FILES:
        answer = await service.get(path)
        policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert "http" not in str(policy)
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_styles_and_the_start_load_nothing_from_elsewhere() -> None:
    assert "@import" not in (PAGES / "swagger-ui.css").read_text()
    assert "url(http" not in (PAGES / "swagger-ui.css").read_text().replace('"', "").replace("'", "")
    assert "http" not in (PAGES / "start.js").read_text()
    assert "validatorUrl: null" in (PAGES / "start.js").read_text()  # else every document is sent to a validator


def test_the_pages_are_in_the_wheel_with_their_licences() -> None:
    assert "pages/*" in project()["tool"]["setuptools"]["package-data"]["service.api"]
    assert {*FILES.values(), "LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"} <= {path.name for path in PAGES.iterdir()}
