"""What was reported to fail once, and the test that holds the right value of each.

A case is listed here by what it was about; a test that is renamed or goes away has to be replaced.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.dialects import DIALECTS

TESTS = Path(__file__).parents[1]

_OPEN = "integration/test_exports_open.py::"
_REFUSED = "integration/test_exports_refused.py::"
_LAYOUTS = "integration/test_checkpoint_layouts.py::"
_DIALECTS = "e2e/test_cloud_dialects.py::"

CASES = {
    "merged names of PEFT": _REFUSED + "test_names_of_a_wrapper_are_called_so",
    "a LoRA alone": _LAYOUTS + "test_what_is_no_model_is_refused_by_name",
    "GPTQ by quantize_config.json": "integration/test_dequantized_checkpoints.py::"
    "test_only_a_file_beside_the_config_says_how",
    "a stale index": _LAYOUTS + "test_what_transformers_loads_is_read_alike",
    "an added token without a row": _OPEN + "test_added_tokens_without_a_row_are_dropped_and_told",
    "ends past the vocabulary": _OPEN + "test_ends_that_no_token_has_are_left_out_and_told",
    "an end of turn that is not eos": "unit/test_folder_text.py::"
    "test_the_end_of_a_turn_ends_an_answer",
    "heads that are no multiple of 8": _REFUSED + "test_heads_of_any_even_size_run",
    "KV heads that do not divide": _REFUSED
    + "test_heads_that_share_no_kv_heads_evenly_are_refused",
    "YaRN betas": _REFUSED + "test_yarn_with_betas_that_llama_cpp_has_not_is_refused_in_gguf",
    "partial rope that llama does not read": "integration/test_transformers_fields.py::"
    "test_no_field_is_read_that_transformers_does_not_read",
    "a folder named phi-3": _OPEN + "test_a_folder_s_name_changes_no_ids",
    "a tokenizer of words, in ONNX": _OPEN + "test_a_tokenizer_of_words_opens_in_onnx",
    "a tokenizer of words, in GGUF": _OPEN
    + "test_a_tokenizer_that_llama_cpp_has_not_is_refused_before_anything_is_written",
    "a template that is no Jinja": _OPEN
    + "test_without_a_usable_template_a_bundle_completes_and_says_so",
    "a begin that only config.json names": "integration/test_text_side_reference.py::"
    "test_a_bos_of_config_json_alone_is_not_written",
    "syntaxes of calls, learned": "unit/test_tool_format.py::"
    "test_calls_are_written_as_the_template_writes_them",
    "syntaxes of calls, read": "unit/test_calls.py::"
    "test_calls_are_found_in_the_ways_that_families_write_them",
    "max_completion_tokens, no temperature": _DIALECTS
    + "test_what_an_endpoint_refuses_is_learned_once",
    "deep JSON, HTML, a quota": _DIALECTS + "test_faults_stay_in_the_tree_of_errors",
    "a long Retry-After": "e2e/test_cloud_faults.py::test_a_long_retry_after_is_not_waited_for",
}

# Endpoints' replies, each read whole in one request by `test_a_dialect_is_read_in_one_request`.
REPLAYS = {
    "ok": "as OpenAI",
    "finish-empty": "empty finish reasons",
    "no-done": "no done",
    "crlf": "carriage returns",
    "comments": "comments",
    "charwise": "one letter each",
    "surrogate": "surrogates apart",
    "neg-usage": "usage negative",
    "no-usage": "no usage",
    "usage-each": "usage in every chunk",
    "no-choices-ping": "a ping",
    "choices-null": "choices null",
    "azure-first": "choices empty",
    "gemini-index0": "all of index 0",
    "tool-stop": "call that stops",
    "think-inline": "reasoning in the text",
    "filter": "filtered",
    "length": "length",
    "role-null": "role null",
    "choice-index-missing": "index missing",
    "json-not-sse": "whole",
    "gzip": "gzip",
}


@pytest.mark.parametrize("case", CASES)
def test_a_case_has_its_test(case: str) -> None:
    file, name = CASES[case].split("::")
    found = ast.parse((TESTS / file).read_text()).body
    assert name in {part.name for part in found if isinstance(part, ast.FunctionDef)}


@pytest.mark.parametrize("reply", REPLAYS)
def test_a_reply_of_an_endpoint_has_its_dialect(reply: str) -> None:
    assert REPLAYS[reply] in DIALECTS
