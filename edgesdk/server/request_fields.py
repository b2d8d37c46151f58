"""Which fields of a request have another name here, change nothing, or are refused: one table.

A field that would change the answer is done or refused by its name, never dropped in silence. One
that cannot change the answer of a model on this machine is left out, whatever its value; so is any
field that is null. `docs/reference/request-fields.md` is written from this table and the request
models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgesdk.server.api_errors import ApiError
from edgesdk.system.checks import suggestion

# Other servers' names, and the fields that they mean.
ALIASES = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "random_seed": "seed",
    "thinking_budget": "max_reasoning_tokens",
    "thinking_token_budget": "max_reasoning_tokens",
}

# What clients keep for themselves, hints on speed, and switches of other engines.
IGNORED = {
    "OpenAI": (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    ),
    "LiteLLM": (
        *("allowed_openai_params", "api_base", "caching", "custom_llm_provider", "drop_params"),
        *("extra_headers", "fallbacks", "num_retries", "proxy_server_request", "timeout"),
    ),
    "OpenRouter": ("models", "plugins", "provider", "route", "session_id", "trace", "usage"),
    "Open WebUI": (
        *("background_tasks", "chat_id", "features", "files", "filter_ids", "id", "message_id"),
        *("model_item", "params", "skill_ids", "terminal_id", "title", "tool_ids"),
        *("tool_servers", "variables"),
    ),
    "llama.cpp": (
        *("cache_prompt", "dynatemp_exponent", "grammar_lazy", "grammar_triggers", "id_slot"),
        *("mirostat_eta", "mirostat_tau", "n_cache_reuse", "n_discard", "n_keep"),
        *("preserved_tokens", "response_fields", "return_progress", "return_tokens", "slot_id"),
        *("timings_per_token", "xtc_threshold"),
    ),
    "Ollama, LM Studio": (
        *("draft_model", "f16_kv", "low_vram", "main_gpu", "num_batch", "num_gpu", "num_keep"),
        *("num_thread", "numa", "use_mlock", "use_mmap", "vocab_only"),
    ),
    "vLLM": (
        *("cache_salt", "guided_decoding_backend", "kv_transfer_params", "mm_processor_kwargs"),
        *("priority", "request_id", "spaces_between_special_tokens", "vllm_xargs"),
    ),
}
_IGNORED = frozenset().union(*IGNORED.values())
IGNORED_PREFIX = "litellm_"

# What would change the answer and is not done, and the values with which it changes nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "documents": ([],),
    "dynatemp_range": (0,),
    "early_stopping": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora": ([],),
    "min_keep": (0, 1),
    "mirostat": (0,),
    "echo": (False,),
    "n_indent": (0,),
    "n_probs": (0,),
    "penalize_nl": (False,),
    "parse_tool_calls": (True,),
    "post_sampling_probs": (False,),
    "prompt_logprobs": (0, False),
    "samplers": (),
    "skip_special_tokens": (True,),
    "t_max_predict_ms": (0, -1),
    "tfs_z": (1,),
    "top_a": (0,),
    "top_n_sigma": (0, -1),
    "transforms": ([],),
    "truncate_prompt_tokens": (-1,),
    "typical_p": (0, 1),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
    "xtc_probability": (0,),
}


def accepted_fields(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of a body that do something, by the names that they have here.

    Args:
        known: the names of the request model.

    Raises:
        ApiError: 400; two names of one field contradict each other, or a field is not supported.
    """
    kept: dict[str, Any] = {}
    for name, value in given.items():
        target = name if name in known else ALIASES.get(name, name)
        if value is None:
            continue
        if target in known:
            if kept.setdefault(target, value) != value:
                message = f"Two names of {target} contradict each other."
                raise ApiError(400, message, param=target, code="invalid_value")
        elif not _changes_nothing(name, value):
            raise _unsupported(name, known)
    return kept


def _changes_nothing(name: str, value: Any) -> bool:
    ignored = name in _IGNORED or name.startswith(IGNORED_PREFIX)
    return ignored or value in REFUSED.get(name, ())


def _unsupported(name: str, known: Collection[str]) -> ApiError:
    message = f"The parameter {name!r} is not supported."
    hint = None if name in REFUSED else suggestion(name, [*known, *ALIASES])
    if name in REFUSED and (neutral := REFUSED[name]):
        hint = f"Leave it out, or send {neutral[0]!r}."
    message = message if hint is None else f"{message} {hint}"
    return ApiError(400, message, param=name, code="unsupported_parameter")
