"""One check for words of a list, and one for loopback hosts, wherever they are given."""

from __future__ import annotations

from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.served import FakeModels

from edgesdk import Cloud, HybridClient
from edgesdk.cli.hybrid_config import read_hybrid_config
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.options import Options
from edgesdk.overflow import checked_policy
from edgesdk.server.app import Guard
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.settings import ServerSettings
from edgesdk.store.reference import parse_reference
from edgesdk.system.checks import checked_choice, is_loopback, nearest
from edgesdk.system.power import Governor

LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "localhost"]
ELSEWHERE = [
    "127.evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost.",
    "LOCALHOST",
    "evil.example",
    "127.1",
    "0.0.0.0",
    "10.0.0.1",
    "::",
    "::ffff:10.0.0.1",
    "2130706433",
    "0x7f000001",
    "",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_these_hosts_are_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_these_hosts_may_be_others(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["127.evil.example", "127.0.0.1.evil.example", "10.0.0.1"])
def test_every_door_decides_alike(host: str) -> None:
    with pytest.raises(InvalidOption, match="unencrypted"):
        Cloud(f"http://{host}/v1", "m", "key")
    with pytest.raises(InvalidOption, match="unprotected"):
        parse_reference(f"http://{host}/model.gguf")
    with pytest.raises(InvalidOption, match="API key is needed"):
        ServerSettings(host=host)


async def test_a_page_that_only_looks_like_this_machine_is_kept_out() -> None:
    statuses = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"status": 200})

    for host in (b"127.evil.example", b"127.0.0.1:8080", b"[::1]:8080"):
        scope = {"type": "http", "path": "/v1/models", "headers": [(b"host", host)]}
        await Guard(app, ServerSettings())(scope, app, send)
    assert [status for status in statuses if status] == [403, 200, 200]


def test_a_word_that_is_none_is_named_with_the_choices() -> None:
    assert checked_choice("prefer", "local", ("local", "cloud")) == "local"
    with pytest.raises(InvalidOption) as raised:
        checked_choice("prefer", "Local", ("local", "cloud"))
    assert str(raised.value) == (
        "prefer must be one of local, cloud, not 'Local'. Did you mean local?"
    )
    for value in (None, 1, True, b"local", ["local"], "", " "):
        with pytest.raises(InvalidOption, match="prefer must be one of"):
            checked_choice("prefer", value, ("local", "cloud"))


def client(**changes: Any) -> HybridClient:
    model = FakeModels(one=lambda: FakeEngine(b"Yes")).load("one")
    return HybridClient(model, cloud=Cloud("http://127.0.0.1:9/v1", "m"), **changes)


TYPOS: dict[str, tuple[Any, str]] = {
    "prefer": (lambda: client().stream("Hi", prefer="Local"), "Did you mean local"),
    "prefer in a chat": (lambda: client().chat().stream("Hi", prefer="lokal"), "mean local"),
    "upload": (lambda: client().stream("Hi", upload="local-only"), "Did you mean local_only"),
    "default": (lambda: Policy("Redact"), "Did you mean redact"),  # type: ignore[arg-type]
    "media": (lambda: Policy(media="localonly"), "Did you mean local_only"),  # type: ignore[arg-type]
    "tags": (lambda: Policy(tags={"a": "alow"}), "Did you mean allow"),  # type: ignore[dict-item]
    "kinds": (lambda: Policy(kinds={"EMAIL": "aks"}), "Did you mean ask"),  # type: ignore[dict-item]
    "on_break": (lambda: client(on_break="restrat"), "Did you mean restart"),
    "on_break of a cloud": (
        lambda: CloudClient([Cloud("http://127.0.0.1:9", "m")], on_break="Incomplete"),  # type: ignore[arg-type]
        "Did you mean incomplete",
    ),
    "overflow": (lambda: client().chat(overflow="drop_oldest"), "mean drop_oldest_turns"),  # type: ignore[arg-type]
    "overflow of a chat": (lambda: checked_policy("sumarize"), "Did you mean summarize"),
    "hold": (lambda: HybridClients(client, Policy(), hold="anwser"), "mean answer"),  # type: ignore[arg-type]
    "speculate": (lambda: Options(speculate="lokup"), "Did you mean lookup"),  # type: ignore[arg-type]
    "power": (lambda: Governor("ballanced"), "Did you mean balanced"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_in_an_option_is_refused_before_anything_is_sent(name: str) -> None:
    call, words = TYPOS[name]
    with pytest.raises(InvalidOption, match=words):
        call()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('upload = "local-only"', "upload: .*Did you mean local_only"),
        ('media = "lokal_only"', "media: .*Did you mean local_only"),
        ('hold = "Decision"', "hold: .*Did you mean decision"),
    ],
)
def test_a_typo_in_the_file_is_refused(tmp_path: Any, line: str, words: str) -> None:
    path = tmp_path / "hybrid.toml"
    path.write_text(f'{line}\n[[cloud]]\nurl = "https://x.example/v1"\nmodel = "m"\n')
    with pytest.raises(InvalidOption, match=words):
        read_hybrid_config(path)


@pytest.mark.parametrize(
    ("typed", "first"),
    [("smollm2", "smollm2-135m"), ("smolm2-135m", "smollm2-135m"), ("qwen-coder", "qwen2.5-coder")],
)
def test_the_nearest_name_comes_first(typed: str, first: str) -> None:
    assert nearest(typed, ["qwen2.5-coder", "smollm2-135m", "gemma"])[0] == first
    assert nearest(typed.upper(), ["Qwen2.5-Coder", "SmolLM2-135m", "gemma"])[0].lower() == first


def test_nothing_is_near_an_unlike_name() -> None:
    assert nearest("zzz", ["qwen2.5-coder", "smollm2-135m"]) == []
