"""The file of upstreams: the example works, and what is wrong is named with its fix before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.api.app import running
from service.api.facade.outcomes import cost_of
from service.api.facade.surfaces import Usage
from service.api.facade.upstreams import Prices, load
from service.settings import InvalidSettings, Settings
from tests.service.http_client import opened

ARM = '[arms.a]\nbase_url = "https://example.com/v1"\nmodel = "m"\n'


def refused(tmp_path: Path, text: str | bytes) -> str:
    """What the operator is shown."""
    path = tmp_path / "upstreams.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidSettings) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"NEXTARM_UPSTREAMS: {path}: ")
    return message.removeprefix(f"NEXTARM_UPSTREAMS: {path}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "arms: is missing; add it, a table per arm: [arms.NAME]"),
        ("[arms]", "arms: dictionary should have at least 1 item after validation, not 0"),
        ("[arms.a", "is not TOML: "),
        (b"\xff", "is not TOML: "),
        ('[arms.a]\nmodel = "m"', "arms.a.base_url: is missing; add it"),
        (ARM + "modell = 1", "arms.a.modell: is no key here; did you mean model?"),
        (ARM + "x = 1", "arms.a.x: is no key here; there are base_url, model, key_env, timeout_s, stream_usage, prices, tenants"),
        ("arm = 1\n" + ARM, "arm: is no key here; did you mean arms?"),
        (ARM + 'key = "sk"', "arms.a.key: is no key here"),
        (ARM + 'key_env = "sk-123"', "arms.a.key_env: must be the name of an environment variable, such as OPENAI_API_KEY"),
        (ARM + 'key_env = "NEXTARM_API_KEYS"', "arms.a.key_env: begins with NEXTARM_"),
        (ARM + 'key_env = "ABSENT_KEY"', "arms.a.key_env: the variable ABSENT_KEY is not set; set it, or leave key_env out"),
        (ARM + 'key_env = "BROKEN_KEY"', "arms.a.key_env: the variable BROKEN_KEY holds characters that no header can carry"),
        (ARM + "timeout_s = 0", "arms.a.timeout_s: input should be greater than 0"),
        (ARM + "prices = {input = -1}", "arms.a.prices.input: input should be greater than or equal to 0"),
        (ARM + "prices = {tokens = 1}", "arms.a.prices.tokens: is no key here; there are input, output, cached, image, call"),
        (
            ARM.replace("https://example.com/v1", "example.com"),
            'arms.a.base_url: is no URL; write e.g. "https://api.openai.com/v1"',
        ),
        (ARM.replace("example.com", "u:p@example.com"), "arms.a.base_url: holds a user or a password"),
        (ARM.replace("/v1", "/v1?x=1"), "arms.a.base_url: has a query or a fragment"),
        (ARM + '[bandits.b]\nsignals = ["speed"]', "bandits.b.signals.0: input should be 'latency_s', "),
        ("attempts = 0\n" + ARM, "attempts: input should be greater than or equal to 1"),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, message: str
) -> None:
    monkeypatch.setenv("BROKEN_KEY", "sk\u20ac-secret")
    shown = refused(tmp_path, text)
    assert shown.startswith(message), shown
    assert "secret" not in shown


async def test_a_server_whose_file_is_wrong_or_missing_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read: No such file"):
        async with running(Settings.load(store="memory://", upstreams=str(tmp_path / "none.toml"))):
            pass


def test_keys_come_from_the_environment_and_are_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", " sk-secret\n")
    path = tmp_path / "upstreams.toml"
    path.write_text(ARM + 'key_env = "A_KEY"\n')
    found = load(path)
    assert found.arms["a"].key == "sk-secret"
    assert "secret" not in repr(found)
    assert "secret" not in found.model_dump_json()
    assert found.arms["a"].base_url == "https://example.com/v1"


async def test_the_example_is_a_file_that_a_server_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    path = Path(__file__).parents[4] / "examples" / "upstreams.toml"
    found = load(path)
    assert found.arms["small"].key == "sk-x"
    assert found.learned("", "cheapest").reward == 1.0
    assert found.learned("acme", "cheapest").reward is None
    assert not found.arms["local/llama"].serves("acme")
    async with opened(upstreams=str(path)) as service:
        await service.create("router", {"arms": [{"name": name} for name in found.arms]})
        assert (await service.get("/v1/models")).json()["data"][0]["id"] == "bandit/router"


def test_what_a_call_costs() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=4)
    assert cost_of(Prices(), usage, pictures=2) is None
    assert cost_of(Prices(input=0.5), usage, pictures=0) == 5.0
    assert cost_of(Prices(output=0.5), usage, pictures=0) == 2.0
    assert cost_of(Prices(input=0.5, call=3.0), None, pictures=0) is None, "a part is no cost"
    assert cost_of(Prices(image=0.25, call=1.0), None, pictures=2) == 1.5
    assert cost_of(Prices(input=0.0), usage, pictures=0) == 0.0
    assert cost_of(Prices(input=0.5), Usage(), pictures=0) is None, "no tokens at all are not known ones"
    assert cost_of(Prices(input=0.5), Usage(prompt_tokens=0, completion_tokens=0), pictures=0) is None
