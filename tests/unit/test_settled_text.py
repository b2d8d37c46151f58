"""What a bundle's text side leaves out, and what names do to a GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.gguf.model_name import model_name
from edgesdk_export.selftest.token_ids import check_token_ids
from edgesdk_export.tokenizers import TextFiles
from edgesdk_export.tokenizers.settling import settle_text, template_problem
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from edgesdk.bundle.manifest import TokenizerEntry, checkpoint_name
from edgesdk.errors import CheckpointError, ConfigMismatch, ExportError

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def tokenizer(**added: bool) -> Tokenizer:
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "<s>": 2, "</s>": 3, "<unk>": 4}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for content, rstrip in added.items():
        made.add_special_tokens([AddedToken(content, rstrip=rstrip, normalized=False)])
    return made


def text_of(made: Tokenizer, template: str | None = TEMPLATE, **entry: object) -> TextFiles:
    return TextFiles(made.to_str().encode(), template, TokenizerEntry(**entry))


def settled(text: TextFiles, rows: int = 10):
    return settle_text(text, rows, where="here")


def test_a_text_side_that_fits_stays_byte_for_byte() -> None:
    text = text_of(tokenizer(), eos_token="</s>", eos_token_ids=(3,), chat_template="t")
    assert settled(text).text == text
    assert settled(text).notes == ()


def test_ids_without_a_token_or_a_row_go() -> None:
    text = text_of(tokenizer(), eos_token_ids=(3, 7, 99), bos_token="x", bos_token_id=8)
    entry, notes = settled(text).text.entry, settled(text).notes
    assert entry.eos_token_ids == (3,)
    assert (entry.bos_token, entry.bos_token_id, entry.add_bos) == (None, None, False)
    assert len(notes) == 2
    assert "7, 99" in notes[0]


def test_that_nothing_ends_an_answer_is_told() -> None:
    assert settled(text_of(tokenizer())).notes == (
        "No token ends an answer: it goes on until max_tokens.",
    )


def test_added_tokens_past_the_rows_become_plain_text() -> None:
    text = text_of(tokenizer(**{"<x>": False, "<y>": False}), eos_token_ids=(3, 6))
    done = settled(text, rows=6)
    left = Tokenizer.from_buffer(done.text.tokenizer_json)
    assert left.encode("a<x>b").ids == [0, 5, 1]
    assert left.encode("a<y>b").ids == [0, 1]  # of "<", "y" and ">" there is no letter here
    assert "'<y>'" in done.notes[0]
    assert done.text.entry.eos_token_ids == (3,)


def test_a_vocabulary_past_the_rows_is_refused() -> None:
    with pytest.raises(ConfigMismatch, match=r"here: the tokenizer has the id 4; .* 4 rows"):
        settled(text_of(tokenizer()), rows=4)


def test_a_tokenizer_that_spells_nothing_is_refused() -> None:
    parts = {**json.loads(tokenizer().to_str()), "pre_tokenizer": None}
    parts["decoder"] = {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b"}
    with pytest.raises(CheckpointError, match=r"here: .*speech"):
        settled(TextFiles(json.dumps(parts).encode(), TEMPLATE, TokenizerEntry()))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (TEMPLATE, None),
        ("{{ messages }}", None),
        (None, "the checkpoint has no chat template"),
        ("{% if %}", "not valid Jinja"),
        ("{{ messages[9].content.x }}", "failed"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "failed"),
        ("Hi", "leaves out what the user says"),
    ],
)
def test_what_is_wrong_with_a_template(template: str | None, problem: str | None) -> None:
    found = template_problem(template, TokenizerEntry())
    assert found is problem is None or (problem or "?") in (found or "")


def named(name: str, made: Tokenizer, **config: object) -> str:
    container = "gguf" if config else "safetensors"
    checkpoint = Checkpoint(Path("x"), container, name, config, {}, ())
    return model_name(checkpoint, text_of(made))


PHI = {"<|endoftext|>": False, "<|user|>": True, "<|end|>": True}


def test_only_a_tokenizer_that_wants_it_is_named_phi_3() -> None:
    assert named("My-Phi-3-mini", tokenizer()) == "My-Phi 3-mini"
    assert named("PHI3", tokenizer()) == "PHI 3"
    assert named("phi-4", tokenizer()) == "phi-4"
    assert named("my-model", tokenizer(**PHI)) == "my-model (phi-3)"
    assert named("my-phi3", tokenizer(**PHI)) == "my-phi3"
    # Without the tokens that llama.cpp looks for it would not load.
    assert named("phi3", tokenizer(**{"<|user|>": True})) == "phi 3"


def test_a_gguf_s_own_name_decides() -> None:
    assert named("phi-3-file", tokenizer(), **{"general.architecture": "llama"}) == "phi 3-file"
    assert named("Phi-3 m", tokenizer(), **{"general.name": "Phi-3 m"}) == "Phi-3 m"


def test_a_folder_in_a_hub_s_cache_has_the_model_s_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some-org--Tiny-1B" / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    assert checkpoint_name(snapshot) == "Tiny-1B"
    (tmp_path / "link").symlink_to(snapshot)
    assert checkpoint_name(tmp_path / "link") == "Tiny-1B"
    assert checkpoint_name(tmp_path / "snapshots" / "x") == "x"
    bare = tmp_path / "models--gpt2" / "snapshots" / "0a1b2c"
    bare.mkdir(parents=True)
    assert checkpoint_name(bare) == "gpt2"


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|end|>"])
    return made


@pytest.mark.parametrize(
    ("differs", "kind"), [("12345", "digits"), ("中文", "CJK"), ("def f", "code"), ("😀", "emoji")]
)
def test_other_ids_for_ordinary_text_are_refused(differs: str, kind: str) -> None:
    made = byte_tokenizer()

    def encode(texts):
        ids = [made.encode(text, add_special_tokens=False).ids for text in texts]
        return [[0] if differs in text else row for text, row in zip(texts, ids, strict=True)]

    with pytest.raises(ExportError, match=f"cut {kind} otherwise.*not \\["):
        check_token_ids(made.to_str().encode(), encode)


def test_other_ids_around_added_tokens_are_told() -> None:
    made = byte_tokenizer()

    def encode(texts):
        ids = [made.encode(text, add_special_tokens=False).ids for text in texts]
        return [[0] if "<|end|>" in text else row for text, row in zip(texts, ids, strict=True)]

    (note,) = check_token_ids(made.to_str().encode(), encode)
    assert "text around added tokens" in note
    assert "'<|end|>'" in note
