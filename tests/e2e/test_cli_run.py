"""`edgesdk run` as a shell sees it, and in this process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.command_line import MAIN, edgesdk, edgesdk_here, environment

pytestmark = [pytest.mark.e2e, pytest.mark.integration]
pytest.importorskip("llama_cpp")

_SHORT = ("--max-tokens", "12", "--threads", "1")


def test_an_answer_goes_to_stdout_and_its_receipt_to_stderr(smollm2_gguf: Path) -> None:
    done = edgesdk("run", str(smollm2_gguf), "Name a river.", *_SHORT)

    assert done.returncode == 0
    assert len(done.stdout.split()) > 3
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"tokens/s" in done.stderr
    assert b"ended by length" in done.stderr


def test_json_is_one_object_with_the_same_text(smollm2_gguf: Path) -> None:
    plain = edgesdk("run", str(smollm2_gguf), "Name a river.", "--no-receipt", *_SHORT)
    done = edgesdk("run", str(smollm2_gguf), "--json", *_SHORT, stdin=b"Name a river.")

    reply = json.loads(done.stdout)
    assert reply["text"] == plain.stdout.decode().removesuffix("\n")
    assert reply["receipt"]["output_tokens"] == 12
    assert reply["receipt"]["finish_reason"] == "length"
    assert plain.stderr == done.stderr == b""


def test_the_system_message_and_the_options_reach_the_model(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    def ask(*options: str) -> tuple[str, int]:
        given = ("run", str(smollm2_gguf), "-", "--json", *_SHORT, *options)
        done = edgesdk_here(*given, home=tmp_path, stdin=b"Hello")
        reply = json.loads(done.stdout)
        return reply["text"], reply["receipt"]["prompt_tokens"]

    sampled = ("--temperature", "1.5", "--top-k", "50", "--seed", "7")
    greedy, tokens = ask()

    assert ask(*sampled) == ask(*sampled)
    assert ask(*sampled)[0] != greedy
    assert ask("--system", "You are a pirate. " * 9)[1] > tokens
    assert ask("--stop", greedy[3:6])[0] == greedy[:3]


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "said"),
    [
        (("x", "--top-p", "3"), b"", 2, "top_p must be"),
        (("x", "--device", "toaster"), b"", 2, "'toaster'"),
        (("",), b"", 1, "prompt is empty"),
        (("-",), b"", 1, "prompt is empty"),
        ((), b"abc\xff", 1, "not UTF-8: byte 3 is 0xff"),
        (("x " * 500, "--context", "64"), b"", 1, "63 fit"),
        (("x", "--no-such-option"), b"", 2, "No such option"),
    ],
)
def test_wrong_input_is_one_line_of_error(
    smollm2_gguf: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    stdin: bytes,
    status: int,
    said: str,
) -> None:
    given = ("run", str(smollm2_gguf), *arguments)
    done = edgesdk_here(*given, home=tmp_path, expect=status, stdin=stdin)

    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_unknown_model_is_one_line_of_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MAIN, "run", "no-such-model", "x"],
        capture_output=True,
        env=environment(EDGESDK_HOME=str(tmp_path)),
        timeout=300,
    )

    assert done.returncode == 1
    assert done.stderr.startswith(b"edgesdk: error: The store has no model 'no-such-model'.")


def test_a_reader_that_has_enough_stops_the_answer_quietly(smollm2_gguf: Path) -> None:
    command = [*MAIN, "run", str(smollm2_gguf), "Count to one thousand.", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--no-receipt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        remarks = process.stderr.read()
        status = process.wait(300)

    assert (status, remarks) == (0, b"")
