"""What an endpoint may be, and those that are known by name."""

from __future__ import annotations

import contextlib
import sys
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.endpoint import Cloud, Timeouts, find_preset, preset_names, price_of

URL = "https://cloud.example/v1"
KEY = "sk-private-0123456789"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": "cloud.example/v1"}, "no base URL"),
        ({"base_url": "ftp://cloud.example"}, "no base URL"),
        ({"base_url": "https://"}, "no base URL"),
        ({"base_url": "https://cloud.example:99999/v1"}, "no base URL"),
        ({"base_url": "https://cloud.example:port/v1"}, "no base URL"),
        ({"base_url": "https://[::1/v1"}, "no base URL"),
        ({"base_url": "https://cloud\n.example/v1"}, "no base URL"),
        ({"base_url": "https://" + "a" * 70_000}, "no base URL"),
        ({"base_url": "https://me:word@cloud.example/v1"}, "no password"),
        ({"base_url": f"{URL}?key=1"}, "query"),
        ({"base_url": "http://cloud.example/v1"}, "unencrypted"),
        ({"base_url": "http://127.evil.example/v1"}, "unencrypted"),
        (
            {"base_url": "http://cloud.example/v1", "api_key": None, "headers": {"api-key": "k"}},
            "unencrypted",
        ),
        ({"api_key": "sk-schlüssel"}, "key"),
        ({"api_key": "sk-a\nHost: b"}, "key"),
        ({"api_key": "“sk-a”"}, "key"),
        ({"api_key": ""}, "key is empty"),
        ({"headers": {"X-Name": "Zoë"}}, "no HTTP header"),
        ({"headers": {"X Name": "a"}}, "no HTTP header"),
        ({"headers": {"X-Name": "a\r\nX-Other: b"}}, "no HTTP header"),
        ({"headers": {"Content-Length": "3"}}, "not for the app"),
        ({"input_price": float("nan")}, "price"),
        ({"output_price": -1.0}, "price"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens_field": "max_new_tokens"}, "max_tokens_field must be one of"),
        ({"omit": "temperature"}, "a list of names"),
        ({"verify": "no/such/file.pem"}, "does not exist"),
        ({"proxy": "proxy.example"}, "no URL of a proxy"),
        ({"proxy": "ftp://proxy.example"}, "no URL of a proxy"),
        ({"proxy": "http://me:secret-word@[::1"}, "no URL of a proxy"),
    ],
)
def test_what_is_wrong_is_said_at_once(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said) as raised:
        Cloud(**{"base_url": URL, "model": "m", "api_key": KEY, **changes})
    assert KEY not in str(raised.value)
    assert "secret-word" not in str(raised.value)


@given(st.text(max_size=30), st.text(max_size=10), st.text(max_size=20))
def test_any_text_is_an_endpoint_or_refused(url: str, model: str, key: str) -> None:
    with contextlib.suppress(InvalidOption):
        cloud = Cloud(url, model, key or None)
        assert cloud.name
        assert cloud.chat_url


@given(st.text(max_size=30))
def test_any_text_is_a_host_and_a_key_or_refused(text: str) -> None:
    for changes in ({"base_url": f"https://{text}/v1"}, {"api_key": text}, {"proxy": text}):
        with contextlib.suppress(InvalidOption):
            assert Cloud(**{"base_url": URL, "model": "m", **changes}).name


def test_a_key_may_end_in_a_line() -> None:
    assert Cloud(URL, "m", f"{KEY}\n").api_key == KEY


def test_secrets_are_not_shown() -> None:
    cloud = Cloud(URL, "m", KEY, headers={"X-Own": "own-secret"}, proxy="http://me:word@p.example")
    for secret in (KEY, "own-secret", "word"):
        assert secret not in repr(cloud)


def test_the_default_limits_leave_time_for_another_within_fifteen_seconds() -> None:
    limits = Timeouts()
    assert limits.until_first_token(last=False) <= 10
    assert limits.until_next_token(last=False) <= 10
    # Who is asked last may take longer.
    assert limits.until_first_token(last=True) == 30
    assert Timeouts(first_token=60).until_first_token(last=False) == 60


def test_certificates_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(InvalidOption, match="SSL_CERT_FILE"):
        CloudClient([Cloud(URL, "m")])
    monkeypatch.delenv("SSL_CERT_FILE")
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InvalidOption, match="cannot be read"):
        CloudClient([Cloud(URL, "m", verify=tmp_path / "bad.pem")])


LOCAL = ("vllm", "llama-server", "lmstudio", "ollama")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in preset_names():
        for variable in (find_preset(name).key_env, find_preset(name).url_env):
            if variable is not None:
                monkeypatch.delenv(variable, raising=False)


def made(name: str) -> Cloud:
    own = {"base_url": "https://own.openai.azure.com/openai/v1"} if name == "azure" else {}
    return Cloud.preset(name, "m", "sk-key", **own)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_makes_an_endpoint(name: str) -> None:
    cloud, preset = made(name), find_preset(name)
    assert cloud.chat_url.endswith("/chat/completions")
    assert (cloud.model, cloud.api_key) == ("m", "sk-key")
    assert cloud.chat_url.startswith("http://localhost:" if name in LOCAL else "https://")
    assert (preset.key_env is None) == (name in LOCAL)
    # What the entry says can be looked up again.
    assert preset.source.startswith("https://")
    assert date.fromisoformat(preset.checked) >= date(2026, 1, 1)


def test_those_that_were_asked_for_are_there() -> None:
    assert set(preset_names()) >= {
        "openai", "anthropic", "gemini", "azure", "groq", "cerebras", "sambanova", "together",
        "fireworks", "deepinfra", "openrouter", "deepseek", "qwen", "siliconflow", "ppio", "novita",
        *LOCAL,
    }  # fmt: skip


def test_a_preset_and_a_model_in_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", " gsk-key\n")
    cloud = Cloud("groq:llama-3.3-70b-versatile", output_price=1.0)
    assert cloud.base_url == "https://api.groq.com/openai/v1"
    assert (cloud.model, cloud.api_key) == ("llama-3.3-70b-versatile", "gsk-key")
    assert cloud == Cloud.preset("groq", "llama-3.3-70b-versatile", output_price=1.0)
    # A model's name may have colons too.
    assert Cloud("ollama:llama3.2:3b").model == "llama3.2:3b"
    assert "gsk-key" not in repr(cloud)


def test_what_is_given_goes_before_the_preset() -> None:
    cloud = Cloud.preset("openai", "m", "sk-key", max_tokens_field="max_tokens", omit=("seed",))
    assert (cloud.max_tokens_field, cloud.omit) == ("max_tokens", ("seed",))
    assert Cloud.preset("openai", "m", "sk-key").max_tokens_field == "max_completion_tokens"
    own = Cloud.preset("openai", "m", "sk-key", base_url="https://gateway.example/v1")
    assert own.chat_url == "https://gateway.example/v1/chat/completions"


def test_an_address_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOption, match="AZURE_OPENAI_ENDPOINT"):
        Cloud.preset("azure", "m", "key")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://own.openai.azure.com/")
    cloud = Cloud("azure:m", api_key="key")
    assert cloud.chat_url == "https://own.openai.azure.com/openai/v1/chat/completions"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidOption, match="GROQ_API_KEY"):
        Cloud("groq:m")
    with pytest.raises(InvalidOption, match="Did you mean groq"):
        Cloud("grok:m", api_key="k")
    with pytest.raises(InvalidOption, match="no model"):
        Cloud.preset("groq", "", "k")


def test_prices_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("genai_prices")
    known = Cloud.preset("openai", "gpt-4o-mini", "k")
    assert known.input_price is not None
    assert known.output_price is not None
    assert 0 < known.input_price < known.output_price < 100
    assert price_of(find_preset("openai"), "no-such-model") is None
    assert Cloud.preset("openai", "no-such-model", "k").input_price is None
    # Those of the app count.
    assert Cloud.preset("openai", "gpt-4o-mini", "k", input_price=7.0).output_price is None
    monkeypatch.setitem(sys.modules, "genai_prices", None)  # type: ignore[arg-type]
    assert price_of(find_preset("openai"), "gpt-4o-mini") is None


def test_what_runs_on_ones_own_machine_costs_nothing() -> None:
    for name in preset_names():
        assert find_preset(name).free == (name in LOCAL)
    local = Cloud("ollama:llama3.2:3b")
    assert (local.input_price, local.output_price) == (0, 0)


def test_a_provider_is_known_to_the_prices() -> None:
    data: ModuleType = pytest.importorskip("genai_prices.data")
    known = {provider.id for provider in data.providers}
    named = {find_preset(name).prices for name in preset_names()} - {None}
    assert named <= known


def test_the_documentation_has_every_preset() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "endpoints.md"
    rows = [row.split(" | ") for row in page.read_text(encoding="utf-8").splitlines()]
    listed = {row[0].strip("| `"): row[1:] for row in rows if len(row) == 5 and "`" in row[0]}
    assert set(listed) == set(preset_names())
    for name, (address, key, checked, source) in listed.items():
        preset = find_preset(name)
        assert address.strip("`") == preset.base_url.format(f"${{{preset.url_env}}}")
        assert key.strip("`") == (preset.key_env or "no key")
        assert (checked, preset.source in source) == (preset.checked, True)
