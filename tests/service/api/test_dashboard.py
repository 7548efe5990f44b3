"""The dashboard in a real browser, on a real service that asks for keys."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.service.servers import Server
from tools import browser as chromium

pytestmark = pytest.mark.skipif(chromium.program() is None, reason="no Chromium is installed: apt-get install chromium")

KEYS = {"admin": "admin-key", "reader": "reader-key", "router": "router-key"}
ARMS = [{"name": "small", "price": 0.25}, {"name": "large", "price": 4.0}]
HOSTILE = "<img src=x onerror=alert(1)>'\"&amp;"
PATIENCE_MS = 60_000
VIEWS = {"bandits": "#/bandits", "bandit": "#/bandits/seen", "what if": "#/bandits/seen/what-if", "operations": "#/operations"}

expect.set_options(timeout=PATIENCE_MS)


class Guarded:
    """A page that remembers what it must not do: complain, open dialogs, or ask another host."""

    def __init__(self, browser: Browser, url: str, role: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.url = url
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text) if "Content Security" in message.text else None)
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: None if request.url.startswith(url) else self.wrong.append(request.url))
        if role:
            self.page.add_init_script(f"sessionStorage.setItem('nextarm.key', '{KEYS[role]}')")

    def open(self, view: str) -> Page:
        """The page at a hash, once its heading is there."""
        self.page.goto(f"{self.url}/{view}")
        expect(self.page.locator("h1")).to_be_visible()
        return self.page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("dashboard")
    keys = ",".join(f"{role}:{key}" for role, key in KEYS.items())
    started = Server.launch(store="memory://", folder=folder, settings={"api_keys": keys})
    try:
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """An admin's; with one bandit that has been used."""
    with server.client() as client:
        client.headers["authorization"] = f"Bearer {KEYS['admin']}"
        body = {"policy": {"kind": "greedy"}, "arms": [*ARMS, {"name": HOSTILE, "metadata": {HOSTILE: HOSTILE}}], "seed": 7}
        assert client.put("/v1/bandits/seen", json=body).status_code == 201
        assert client.put("/v1/bandits/seen/shadows/candidate", json={"policy": {"kind": "random"}}).status_code == 201
        for number in range(12):
            decide(client, "seen", f"known-{number}", metadata={HOSTILE: HOSTILE}, session=f"chat-{number // 4}")
            observe(client, "seen", f"known-{number}", reward=0.1 * (number % 7))
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.running() as browser:
        yield browser


@pytest.fixture
def guarded(browser: Browser, server: Server, client: httpx.Client, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    """Parameter: (role, context); an admin's page without one."""
    role, context = getattr(request, "param", ("admin", {}))
    guarded = Guarded(browser, server.url, role, **context)
    yield guarded
    guarded.context.close()
    assert guarded.wrong == []


def decide(client: httpx.Client, bandit: str, decision: str, **more: Any) -> None:
    assert client.post(f"/v1/bandits/{bandit}/decisions", json={"id": decision, **more}).status_code == 201


def observe(client: httpx.Client, bandit: str, decision: str, **outcome: Any) -> None:
    assert client.put(f"/v1/bandits/{bandit}/decisions/{decision}/outcome", json=outcome).status_code == 200


@pytest.mark.parametrize("guarded", [("", {})], indirect=True)
def test_it_asks_for_a_key_and_keeps_it_in_the_tab(guarded: Guarded) -> None:
    page = guarded.open("")
    expect(page.get_by_role("heading", name="A key, please")).to_be_visible()
    form = page.locator("form")
    form.get_by_label("API key").fill("another-key")
    form.get_by_role("button", name="Use this key").click()
    expect(form.get_by_role("alert")).to_contain_text("Bearer")  # of the form: the page may say so first, and make way for it
    form.get_by_label("API key").fill(KEYS["reader"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="seen")).to_be_visible()
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]


def test_a_bandit_is_created_decides_and_learns_before_ones_eyes(guarded: Guarded, client: httpx.Client) -> None:
    page = guarded.open("#/bandits")
    assert client.put("/v1/bandits/fresh", json={"policy": {"kind": "greedy"}, "arms": ARMS}).status_code == 201
    page.get_by_role("link", name="fresh").click()  # waits until the list shows it
    expect(page.get_by_role("heading", name="fresh")).to_be_visible()
    decide(client, "fresh", "first")
    row = page.get_by_role("row").filter(has=page.get_by_role("button", name="first"))
    expect(row).to_contain_text("open")
    observe(client, "fresh", "first", reward=0.625)
    expect(row).to_contain_text("0.625")
    expect(page.locator(".figure").filter(has_text="Decisions")).to_contain_text("0 open")


def test_it_looks_every_few_seconds_where_no_stream_is_free(guarded: Guarded, client: httpx.Client) -> None:
    guarded.page.route("**/events", lambda route: route.fulfill(status=503))
    page = guarded.open("#/bandits/seen")
    expect(page.locator(".live")).to_contain_text("Every 5 s")
    decide(client, "seen", "polled")
    expect(page.get_by_role("button", name="polled")).to_be_visible()
    observe(client, "seen", "polled", reward=0.5)


def test_an_operator_looks_at_a_tenant(guarded: Guarded, client: httpx.Client) -> None:
    body = {"policy": {"kind": "greedy"}, "arms": ARMS}
    assert client.put("/v1/bandits/theirs", json=body, headers={"X-Nextarm-Tenant": "team-a"}).status_code == 201
    page = guarded.open("#/bandits")
    page.get_by_role("button", name="API key and tenant").click()
    page.get_by_role("dialog").get_by_label("Tenant").fill("team-a")
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("link", name="theirs")).to_be_visible()
    expect(page.get_by_role("link", name="seen")).to_have_count(0)


def test_a_decision_is_found_and_shown_whole_by_the_keyboard_alone(guarded: Guarded) -> None:
    page = guarded.open("#/bandits/seen")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_label("Session").fill("chat-1")
    page.keyboard.press("Enter")
    expect(page.locator(".decisions tbody tr")).to_have_count(4)
    page.get_by_label("Find by id").fill("known-3")
    page.keyboard.press("Enter")
    drawer = page.get_by_role("dialog")
    expect(drawer).to_contain_text("chat-0")
    expect(drawer.get_by_role("table")).to_contain_text("estimate")
    assert drawer.locator("pre").first.inner_text() == f'{{\n  "{visible(HOSTILE)}": "{visible(HOSTILE)}"\n}}'
    page.keyboard.press("Escape")
    expect(drawer).to_have_count(0)
    expect(page.get_by_label("Find by id")).to_be_focused()


def visible(text: str) -> str:
    return text.replace('"', '\\"')


@pytest.mark.parametrize("guarded", [("router", {})], indirect=True)
def test_a_key_of_a_lesser_role_reads_that_it_cannot_promote(guarded: Guarded) -> None:
    page = guarded.open("#/bandits/seen/what-if")
    page.get_by_role("button", name="Promote").click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("needs a key with the role admin")


def test_a_shadow_is_promoted_after_a_confirmation(guarded: Guarded, client: httpx.Client) -> None:
    body = {"policy": {"kind": "greedy"}, "arms": ARMS}
    assert client.put("/v1/bandits/promoted", json=body).status_code == 201
    assert client.put("/v1/bandits/promoted/shadows/candidate", json={"policy": {"kind": "random"}}).status_code == 201
    page = guarded.open("#/bandits/promoted/what-if")
    page.get_by_role("button", name="Promote").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("random decides")
    assert client.get("/v1/bandits/promoted").json()["policy"]["kind"] == "greedy"
    dialog.get_by_role("button", name="Promote").click()
    expect(page.get_by_text("candidate decides now")).to_be_visible()
    assert client.get("/v1/bandits/promoted").json()["policy"]["kind"] == "random"


def test_an_evaluation_is_asked_for_and_shown(guarded: Guarded) -> None:
    page = guarded.open("#/bandits/seen/what-if")
    page.get_by_role("button", name="Evaluate …").click()
    page.get_by_role("dialog").get_by_role("button", name="Evaluate").click()
    forest = page.get_by_role("region", name="Policies")
    expect(forest).to_contain_text("as it was decided")
    expect(forest.get_by_role("row").filter(has_text="always small")).to_have_count(1)


def test_names_are_text_whatever_they_hold(guarded: Guarded) -> None:
    page = guarded.open("#/bandits/seen")
    expect(page.locator(".arms")).to_contain_text("<img src=x onerror=alert(1)>'\"&amp;")
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("guarded", [("admin", {"color_scheme": scheme}) for scheme in ("light", "dark")], indirect=True)
def test_nothing_is_in_the_way_of_a_screen_reader(guarded: Guarded) -> None:
    for view in VIEWS.values():
        page = guarded.open(view)
        if view == VIEWS["bandit"]:
            expect(page.locator(".decisions tbody tr").first).to_be_visible()
        found = Axe().run(page).response["violations"]
        assert [(view, rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
    page = guarded.open(VIEWS["bandit"])
    page.get_by_role("button", name="known-3", exact=True).click()
    expect(page.get_by_role("dialog").get_by_role("table")).to_be_visible()
    assert [rule["id"] for rule in Axe().run(page).response["violations"]] == []


@pytest.mark.parametrize("guarded", [("reader", {"viewport": {"width": 360, "height": 740}})], indirect=True)
def test_a_phone_scrolls_in_one_direction(guarded: Guarded) -> None:
    for view in VIEWS.values():
        page = guarded.open(view)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


def of_module(page: Page, module: str, expression: str, given: Any = None) -> Any:
    """The value of an expression of what a module exports (`it`), and of `given`."""
    return page.evaluate(
        f"async (given) => {{ const it = await import('./dashboard/{module}.js'); return {expression}; }}", given
    )


def test_curves_are_the_means_of_what_is_around_them_with_their_error(guarded: Guarded) -> None:
    page = guarded.open("#/bandits")
    rewards = [[0.2, 0.4], [], [0.9], [0.5, 0.5, 0.8]]
    buckets = [
        {"sum": sum(some), "square_sum": sum(x * x for x in some), "count": len(some)} if some else None for some in rewards
    ]
    curve = of_module(page, "series", "it.smooth(given, 1.5)", buckets)
    for at in range(len(rewards)):
        weighed = [(math.exp(-0.5 * ((at - k) / 1.5) ** 2), reward) for k, some in enumerate(rewards) for reward in some]
        mass = sum(weight for weight, _ in weighed)
        mean = sum(weight * reward for weight, reward in weighed) / mass
        variance = sum(weight * (reward - mean) ** 2 for weight, reward in weighed) / mass
        effective = mass**2 / sum(weight**2 for weight, _ in weighed)
        half = 1.96 * math.sqrt(variance / (effective - 1))
        shown = [curve[name][at] for name in ("low", "middle", "high")]
        assert shown == pytest.approx([mean - half, mean, mean + half])
    values = [reward for some in rewards for reward in some]
    total = {name: sum(bucket[name] for bucket in buckets if bucket) for name in ("sum", "square_sum", "count")}
    found = of_module(page, "series", "it.meanOf(given)", total)
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["error"] == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))


def test_charts_count_every_outcome_that_a_series_has(guarded: Guarded) -> None:
    def counts(decisions: int, outcomes: int) -> dict[str, Any]:
        sums = {"sum": 0.5 * outcomes, "square_sum": 0.25 * outcomes, "count": outcomes}
        return {"decisions": decisions, "outcomes": outcomes, "expired": 0, "signals": {"reward": sums}}

    page = guarded.open("#/bandits")
    arms = {"a": counts(3, 2), "pale": counts(1, 1), "decided before": counts(0, 4)}
    bucket = {"at": "2026-01-31T12:00:00Z", "arms": arms, "other": counts(2, 8)}
    series = {"width_s": 10, "arms": list(arms), "buckets": [bucket]}
    fold = "it.foldArms(it.read(given), (arm) => arm === 'pale' ? 'arm-other' : 'arm-1')"
    folded = of_module(page, "series", fold, series)
    other = of_module(page, "series", "it.OTHER")
    assert folded["arms"] == ["a", other]
    total = of_module(page, "series", "it.totals(given)", folded["buckets"])
    assert (total["decisions"], total["outcomes"], total["signals"]["reward"]["sum"]) == (6, 15, 7.5)
    assert {arm: one["outcomes"] for arm, one in folded["buckets"][0]["arms"].items()} == {"a": 2, other: 13}


def test_rows_of_a_list_have_one_axis_on_which_younger_bandits_begin_later(guarded: Guarded) -> None:
    """One bandit is 8 buckets of 100 s old, one began 2 buckets of 50 s before the end, one did nothing yet."""
    page = guarded.open("#/bandits")

    def series(width: int, begin: int, end: int, used: int) -> dict[str, Any]:
        buckets = [{"at": at, "arms": {"a": {"decisions": 5}} if at >= used else {}} for at in range(begin, end, width)]
        return {"width_s": width, "arms": ["a"], "buckets": buckets}

    rows = [series(100, 0, 1000, 200), series(50, 850, 1000, 900), series(10, 990, 1000, 1000)]
    axis = of_module(page, "series", "it.axisOf(given)", rows)
    assert axis == {"begin": 200, "end": 1000}
    assert of_module(page, "series", "it.axisOf(given)", [*rows[2:], series(100, 0, 0, 0)]) is None
    draw = """async (rows) => {
        const [{ html, render }, { Sparkline }, it] = await Promise.all(["vendor/preact", "parts", "series"].map(
            (name) => import(`./dashboard/${name}.js`)));
        return rows.map(({ width_s, buckets }) => {
            const place = document.createElement("div");
            const times = [...buckets.map(({ at }) => at), buckets[buckets.length - 1].at + width_s];
            const columns = buckets.map(({ arms }) => arms.a ? [1] : null);
            const given = { columns, times, axis: it.axisOf(rows), colors: ["arm-0"], label: "x", width: 80 };
            render(html`<${Sparkline} ...${given} />`, place);
            return [...place.querySelectorAll("polygon")].map((area) => [...area.points].map((point) => point.x));
        });
    }"""
    old, young, idle = page.evaluate(draw, rows)
    assert [(min(area), max(area)) for area in old] == [(0.0, 80.0)]
    assert [(min(area), max(area)) for area in young] == [(70.0, 80.0)]
    assert idle == []
    ((moment,),) = (
        [(min(area), max(area)) for area in areas] for areas in page.evaluate(draw, [rows[0], series(5, 995, 1000, 995)])[1:]
    )
    assert moment == (78.0, 80.0), "as narrow as can be seen"


def test_quantiles_and_metrics_are_those_of_the_exposition(guarded: Guarded) -> None:
    page = guarded.open("#/bandits")
    assert of_module(page, "metrics", "it.quantile(given, 0.5)", [[1, 2], [2, 6], [4, 10]]) == 1.75
    text = '# HELP x\nx_total{bandit="a\\"b\\\\",le="0.5"} 3.5\nx_total 2e+3\n'
    found = of_module(page, "metrics", "Object.fromEntries(it.parse(given))", text)
    assert found == {"x_total": [{"labels": {"bandit": 'a"b\\', "le": "0.5"}, "value": 3.5}, {"labels": {}, "value": 2000}]}


def test_why_stacks_what_was_added_and_takes_off_what_was_taken_off(guarded: Guarded) -> None:
    page = guarded.open("#/bandits")
    decision = {
        "arm": "a",
        "weights": {"a": 1.0, "b": 0.0},
        "scores": {"a": {"estimate": 2.0, "bonus": 0.5}, "b": {"estimate": 3.0}},
    }
    terms = of_module(page, "why", "['pak-ucb', 'fd-ucb'].map((kind) => it.termsOf(given, kind))", decision)
    bars = [[(row["isChosen"], row["solid"], row["pale"]) for row in rows] for rows in terms]
    assert bars == [[(True, 2.0, [2.0, 2.5]), (False, 3.0, None)], [(True, 1.5, [1.5, 2.0]), (False, 3.0, None)]]


def test_the_theme_is_chosen_and_kept(guarded: Guarded) -> None:
    page = guarded.open("#/bandits")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button = page.get_by_role("button", name=re.compile("Theme"))
    button.click()
    button.click()
    expect(button).to_have_attribute("aria-label", re.compile("Theme: dark"))
    page.reload()
    assert page.evaluate(ground) != light


def test_a_page_that_is_not_there_says_so(guarded: Guarded) -> None:
    page = guarded.page
    page.goto(f"{guarded.url}/#/elsewhere")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    page.goto(f"{guarded.url}/#/bandits/none")
    expect(page.get_by_role("alert")).to_contain_text("bandit not found")


def test_a_page_that_cannot_be_loaded_says_so_and_others_go_on(guarded: Guarded) -> None:
    guarded.page.route("**/operations.js", lambda route: route.abort())
    guarded.page.goto(f"{guarded.url}/#/operations")
    expect(guarded.page.get_by_role("alert")).to_contain_text("Reload it")
    guarded.page.get_by_role("link", name="Bandits").click()
    expect(guarded.page.get_by_role("link", name="seen")).to_be_visible()
