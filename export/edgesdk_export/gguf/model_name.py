"""Choose a GGUF's `general.name`, which llama.cpp reads as an instruction.

See `edgesdk_export.tokenizers.gguf_vocabulary.is_named_phi3`. A name with phi-3 in it also makes
llama.cpp refuse a vocabulary without the tokens that its rule names. So the name says phi-3 if, and
only if, the tokenizer wants that rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.tokenizers import TextFiles
from edgesdk_export.tokenizers.gguf_vocabulary import PHI3_KEEPS_SPACE, PHI3_NAME, is_named_phi3

_LOOKED_FOR = PHI3_KEEPS_SPACE | {"</s>"}


def model_name(checkpoint: Checkpoint, text: TextFiles) -> str:
    """The checkpoint's name, such that llama.cpp does with it what the tokenizer wants."""
    name = checkpoint.name
    if checkpoint.container == "gguf":
        own = checkpoint.config.get("general.name")
        wanted = isinstance(own, str) and is_named_phi3(own)
    else:
        wanted = _swallows_space(json.loads(text.tokenizer_json))
    if wanted == is_named_phi3(name):
        return name
    return f"{name} (phi-3)" if wanted else PHI3_NAME.sub(r"\1 \2", name)


def _swallows_space(parts: Mapping[str, Any]) -> bool:
    """Whether more added tokens behave as llama.cpp's rule for phi-3 has it than as without."""
    added = parts.get("added_tokens") or []
    if not {*(token["content"] for token in added), *parts["model"]["vocab"]} >= _LOOKED_FOR:
        return False
    ruled = [token for token in added if token["content"] not in PHI3_KEEPS_SPACE]
    return 2 * sum(bool(token.get("rstrip")) for token in ruled) > len(ruled)
