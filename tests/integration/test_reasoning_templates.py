"""How the models of the chat templates that llama.cpp collects reason.

`pytest -s` prints the table: the marks of each template, whether its prompt opens them, and what
asks for which level.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from edgesdk.engines.base import Logits
from edgesdk.errors import InvalidOption, TemplateError
from edgesdk.generation.reasoning_of_answer import ReasoningOfAnswer, reasoning_of_answer
from edgesdk.structured.grammar_constraint import GrammarVocabulary
from edgesdk.structured.output_format import json_grammar
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.reasoning_format import LEVELS, ReasoningMarks
from edgesdk.text.template import ChatTemplate
from tests.support.control_tokenizer import ControlTokenizer
from tests.support.fake_engine import END
from tests.support.template_collection import collected_templates

pytestmark = [pytest.mark.integration, pytest.mark.nightly]

ASKED = {"role": "user", "content": "How much is 2+2?"}
THOUGHT, ANSWER = "Two and two: <b> {", '{"total":4}'
# Those whose template has no mark of reasoning, nor a model that is known to reason.
NONE = {
    "CohereForAI-c4ai-command-r-plus-tool_use", "GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B",
    "Kimi-K2-Instruct", "LFM2-8B-A1B", "MiniMax-M1", "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-Qwen2.5-7B-Instruct", "Qwen3-Coder",
    "fireworks-ai-llama-3-firefunction-v2", "google-gemma-2-2b-it", "ibm-granite-granite-4.0",
    "ibm-granite-granite-4.1", "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2", "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct",
    "microsoft-Phi-3.5-mini-instruct", "mistralai-Mistral-Nemo-Instruct-2407",
    "moonshotai-Kimi-K2", "unsloth-mistral-Devstral-Small-2507",
    # Its model reasons, and its template does not say how.
    "MiMo-VL",
}  # fmt: skip
# Reasoning that their templates cannot turn off.
ALWAYS = {
    "Apriel-1.6-15b-Thinker-fixed", "Kimi-K2-Thinking", "LFM2.5-8B-A1B", "LFM2.5-Instruct",
    "MiniMax-M2", "NVIDIA-Nemotron-Nano-v2", "StepFun3.5-Flash",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "llama-cpp-deepseek-r1",
    "mistralai-Ministral-3-14B-Reasoning-2512", "muse-glimmer", "openai-gpt-oss-120b",
    "unsloth-Apriel-1.5", "upstage-Solar-Open-100B",
}  # fmt: skip


@pytest.fixture(scope="module")
def encoders() -> dict[str, PromptEncoder]:
    """Of each template, with a vocabulary in which its marks are control tokens."""
    found = {}
    for name, source in collected_templates().items():
        template = ChatTemplate(source)
        plain = PromptEncoder(ControlTokenizer([]), template, "", "")
        marks = plain.reasoning_for(None).marks
        tokenizer = ControlTokenizer(_marks_of(marks))
        found[name] = PromptEncoder(tokenizer, template, "", "")
    return found


def _marks_of(marks: ReasoningMarks | None) -> Iterator[str]:
    """The parts of marks that a tokenizer may have as control tokens."""
    texts = () if marks is None else marks.all
    for text in texts:
        for part in text.replace(">", ">\0").replace("<", "\0<").split("\0"):
            if part.startswith("<") and part.endswith(">"):
                yield part


def test_the_marks_and_switches_of_each_template(encoders: dict[str, PromptEncoder]) -> None:
    assert len(encoders) >= 60
    none, always, lines = set(), set(), [""]
    for name, encoder in encoders.items():
        found = encoder.reasoning_for(None)
        if found.marks is None:
            none.add(name)
            assert found.variables("off") == {}
            with pytest.raises(InvalidOption, match="does not reason"):
                found.variables("high")
            continue
        opened = reasoning_of_answer(encoder, encoder.chat([ASKED]), (), chats=True).inside
        levels = {level: dict(found.levels.get(level, {})) for level in LEVELS}
        lines.append(f"{name:46} {found.marks.opening!r:34} {'opened' * opened:6} {levels}")
        assert found.variables("high") is not None
        try:
            off = found.variables("off")
        except InvalidOption:
            always.add(name)
            continue
        ids = encoder.chat([ASKED], variables=off)
        assert not reasoning_of_answer(encoder, ids, (), chats=True).inside, name
    sys.stdout.write("\n".join([*lines, ""]))
    assert none == NONE
    assert always == ALWAYS


def test_each_family_is_read_and_held_to_a_format(encoders: dict[str, PromptEncoder]) -> None:
    schema = {
        "type": "object",
        "properties": {"total": {"type": "integer"}},
        "required": ["total"],
        "additionalProperties": False,
    }
    for name, encoder in encoders.items():
        marks = encoder.reasoning_for(None).marks
        if marks is None:
            continue
        levels = encoder.reasoning_for(None).levels
        ids = encoder.chat([ASKED], variables=levels.get("high", {}))
        reasoning = reasoning_of_answer(encoder, ids, (), chats=True)
        opening = "" if reasoning.inside else marks.opening
        written = f"{opening}{THOUGHT}{marks.closing}{''.join(marks.headers)}{ANSWER}"
        assert _read(reasoning, encoder.mark_ids(written)) == (THOUGHT, ANSWER), name
        vocabulary = GrammarVocabulary(encoder.tokenizer)
        # The model writes no headers, and goes on after the answer.
        wanted = encoder.mark_ids(f"{opening}{THOUGHT}{marks.closing}{ANSWER}, as I said")
        answer = _constrained(reasoning, vocabulary, json_grammar(schema), wanted)
        assert _read(reasoning, answer) == (THOUGHT, ANSWER), name


def _read(reasoning: ReasoningOfAnswer, ids: list[int]) -> tuple[str, str]:
    reader = reasoning.reader()
    token_bytes = reasoning.shown(reasoning.encoder.tokenizer).token_bytes
    found = [reader.feed(token_bytes(token).decode("latin-1")) for token in ids]
    found.append(reader.flush())
    return "".join(part.reasoning for part in found), "".join(part.answer for part in found)


def _constrained(
    reasoning: ReasoningOfAnswer, vocabulary: GrammarVocabulary, grammar: str, wanted: list[int]
) -> list[int]:
    """What a model writes that wants these tokens, one after the other, where it may."""
    constraint = reasoning.constraint(vocabulary.constraint(grammar), None)
    assert constraint is not None
    ids: list[int] = []
    waiting = [*wanted, END]
    while not constraint.finished and len(ids) < 200:
        logits: Logits = np.zeros(reasoning.encoder.tokenizer.vocab_size, np.float32)
        logits[waiting[0]] = 1
        token = int(np.argmax(constraint.masked(logits)))
        if token == waiting[0]:
            waiting.pop(0)
        if token == END:
            break
        constraint.accept(token)
        ids.append(token)
    assert constraint.complete
    return ids


def test_reasoning_in_a_history_is_the_templates_business(
    encoders: dict[str, PromptEncoder],
) -> None:
    kept, left = [], []
    thought = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}
    for name, encoder in encoders.items():
        if encoder.reasoning_for(None).marks is None:
            continue
        assert encoder.template is not None
        try:
            text = encoder.template.render(
                [ASKED, thought, ASKED], bos_token="", eos_token=""
            ).plain
        except TemplateError:
            continue
        assert "Four." in text, name
        (kept if "Two and two." in text else left).append(name)
    assert len(left) > len(kept) > 5
