"""The TOML file of `edgesdk serve --config`, and the options that stand for it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from edgesdk.cli import main
from edgesdk.cli.hybrid_config import (
    EXAMPLE,
    cloud_config,
    hybrid_clients,
    read_hybrid_config,
)
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.cloud.spending import SpendingLimits

CLOUD = """
[[cloud]]
url = "https://cloud.example/v1"
model = "big"
"""
PRICED = f"{CLOUD}input_price = 0.25\noutput_price = 2\n"
ANOTHER = """
[[cloud]]
url = "https://other.example/v1"
model = "other"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    return tmp_path / "hybrid.toml"


def test_the_example_of_the_help_is_right(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    file.write_text(EXAMPLE)
    config = read_hybrid_config(file)
    assert config.budget is not None
    assert config.budget.limits() == SpendingLimits(money_per_day=1.0)
    # Paths are relative to the file's folder.
    assert (config.journal, config.budget.file) == (
        file.parent / "decisions.db",
        file.parent / "spending.db",
    )
    with ExitStack() as opened:
        assert hybrid_clients(config, opened).hold == "decision"
    assert "sk-secret" not in repr(config)


def test_a_file_with_one_cloud_is_the_short_way(file: Path) -> None:
    file.write_text(CLOUD)
    config = read_hybrid_config(file)
    assert config == cloud_config("https://cloud.example/v1", "big", None)
    assert (config.upload, config.media, config.hold) == ("redact", "local_only", "decision")


def test_a_preset_is_named_in_the_file_or_on_the_command_line(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    file.write_text(
        "[[cloud]]\npreset = 'groq'\nmodel = 'big'\napi_key_env = 'MY_KEY'\n"
        "omit = ['temperature']\nproxy = 'http://p.example:8080'\noutput_price = 2"
    )
    (table,) = read_hybrid_config(file).cloud
    endpoint = table.endpoint()
    assert (endpoint.base_url, endpoint.model) == ("https://api.groq.com/openai/v1", "big")
    assert (endpoint.api_key, endpoint.omit) == ("sk-secret", ("temperature",))
    assert (endpoint.proxy, endpoint.output_price) == ("http://p.example:8080", 2.0)
    (short,) = cloud_config("ollama:llama3.2:3b", None, None).cloud
    assert short.endpoint().chat_url == "http://localhost:11434/v1/chat/completions"
    assert short.endpoint().model == "llama3.2:3b"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("upload = 'redact'", "cloud: Field required"),
        ("cloud = []", "cloud: Tuple should have at least 1 item"),
        ("[[cloud]]\nurl = 'https://cloud.example/v1'", "cloud.1.model: Field required"),
        (f"upload = 'ask'{CLOUD}", "upload: a server has nobody to ask"),
        (f"upload = 'all'{CLOUD}", "upload: Input should be 'local_only', 'redact' or 'allow'"),
        (f"{CLOUD}api_key = 'sk-1'", "cloud.1.api_key: there is no such key"),
        (f"uploads = 'redact'{CLOUD}", "uploads: there is no such key. Did you mean upload?"),
        (f"{CLOUD}api_key_env = 'NO_SUCH_KEY'", "cloud.1: NO_SUCH_KEY is not set"),
        (f"{CLOUD}[budget]\nmuch = 1", "budget.much: there is no such key"),
        (f"{CLOUD}[budget]\nmoney_per_day = 1", "A limit of money needs the prices of big at"),
        (f"{CLOUD}[budget]\ntokens_per_day = nan", "budget.tokens_per_day: Input should be"),
        (f"{PRICED}[budget]\nmoney_per_day = nan", "budget.money_per_day: Input should be"),
        (f"{CLOUD}input_price = -1", "cloud.1.input_price: Input should be greater"),
        (f"{CLOUD}[budget]\nfile = 'x'", "budget has no limit"),
        (f"audits = 0.1{CLOUD}", "audits needs a journal"),
        (f"audits = 2{CLOUD}", "audits: Input should be less"),
        (f"hedge_after = 1{CLOUD}", "hedge_after needs another [[cloud]]"),
        (f"hedge_after = 0{CLOUD}{ANOTHER}", "hedge_after: Input should be greater"),
        (f"profile = 'My App'\n{CLOUD}", "cannot be the name of a profile"),
        (f"{CLOUD}[confidence]\ntries = 0", "confidence.tries: Input should be greater"),
        ("[[cloud]]\nurl = 'ftp://x'\nmodel = 'big'", "no base URL"),
        ("[[cloud]]\nmodel = 'big'", "a cloud needs a url or a preset"),
        ("[[cloud]]\npreset = 'olama'\nmodel = 'big'", "Did you mean ollama?"),
        (f"{CLOUD}max_tokens_field = 'max'", "cloud.1.max_tokens_field: Input should be"),
        (f"{CLOUD}verify = 'no-such.pem'", "no-such.pem, which does not exist"),
        (f"{CLOUD}proxy = 'ftp://x'", "proxy is no URL of a proxy"),
        ("upload = ", "is not TOML"),
    ],
)
def test_a_wrong_file_names_itself_the_key_and_the_remedy(
    file: Path, text: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", "--config", str(file)])
    told = capsys.readouterr()
    assert ended.value.code == 2, told.err
    line = " ".join(told.err.split())
    assert line.startswith(f"edgesdk: error: {file}")
    assert problem in line
    assert "edgesdk serve --help" in line
    assert told.out == ""


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--cloud-model", "big"], "--cloud-model goes with --cloud"),
        (["--cloud-key-env", "X"], "--cloud-key-env goes with --cloud"),
        (["--cloud", "https://cloud.example/v1"], "--cloud needs --cloud-model"),
        (["--cloud", "ollama"], "There is no model for 'ollama'"),
        (["--cloud", "olama:big"], "Did you mean ollama?"),
        (["--cloud", "ftp://x", "--cloud-model", "big"], "no base URL"),
        (["--config", "x.toml", "--cloud", "https://x/v1"], "leave --cloud out"),
        (["--config", "no-such-file.toml"], "no-such-file.toml cannot be read"),
        (
            [
                *("--cloud", "https://cloud.example/v1", "--cloud-model", "big"),
                *("--cloud-key-env", "NO_SUCH_KEY"),
            ],
            "NO_SUCH_KEY is not set",
        ),
    ],
)
def test_options_that_do_not_go_together(
    file: Path, options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", *options])
    told = capsys.readouterr()
    assert ended.value.code == 2, told.err
    assert problem in " ".join(told.err.split())
    assert told.out == ""


def test_the_same_key_may_not_be_a_value_of_the_file(file: Path) -> None:
    file.write_text(CLOUD.replace("big", 'big"\napi_key = "sk-1'))
    with pytest.raises(InvalidOption) as caught:
        read_hybrid_config(file)
    assert "sk-1" not in str(caught.value)
