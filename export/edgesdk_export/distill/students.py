"""Read checkpoints as transformers models, and make smaller ones of them.

Depth: layers are ranked by what leaving each one out costs, measured as the KL divergence from the
whole model on a text; the cheapest go. Measured one at a time, as in ShortGPT's and SLEB's
comparisons of such measures (Song et al., 2024, arXiv:2402.09025): what two layers cost together is
not the sum, so the ranking is made again after each one that goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from edgesdk.errors import CheckpointError, RequestError
from edgesdk.text.prompts import PromptEncoder, encoder_of
from edgesdk.text.tokenizer import BundleTokenizer
from edgesdk_export.checkpoint import Checkpoint, open_checkpoint
from edgesdk_export.distill.samples import Sample
from edgesdk_export.tokenizers import TextFiles, read_text
from edgesdk_export.tokenizers.text_files import TEMPLATE_NAME

# Files of the text side, as transformers names them.
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    TEMPLATE_NAME,
)

# (layers that are gone, layers that are to go).
CutProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainableModel:
    """A checkpoint as a transformers model in float32.

    Attributes:
        checkpoint: where it came from.
        model: the transformers model, in evaluation mode.
        text: its text side.
    """

    checkpoint: Checkpoint
    model: Any
    text: TextFiles

    @property
    def end(self) -> int | None:
        """The token that ends an answer, if there is one."""
        return next(iter(self.text.entry.eos_token_ids), None)


def load_trainable(path: Path) -> TrainableModel:
    """Load a checkpoint: a folder with safetensors, or a `.gguf`, which is dequantized.

    Raises:
        CheckpointError: it cannot be read, or transformers does not know its architecture.
    """
    checkpoint = open_checkpoint(path)
    text = read_text(checkpoint)
    model: Any
    try:
        if checkpoint.container == "gguf":
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, local_files_only=True
            )
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise CheckpointError(
            f"transformers cannot load {path}: {error}.",
            hint="Train from the original safetensors of the model.",
        ) from None
    if checkpoint.container == "gguf":
        # Its weights are plain floats now; transformers would still neither train nor save them.
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    model.train(False)
    return TrainableModel(checkpoint, model, text)


def prompt_encoder(text: TextFiles, folder: Path) -> PromptEncoder:
    """Encode prompts as the runtime will; `folder` gets the tokenizer's file meanwhile."""
    path = folder / "tokenizer.json"
    path.write_bytes(text.tokenizer_json)
    tokenizer = BundleTokenizer(path, text.entry)
    return encoder_of(tokenizer, text.entry, text.chat_template, text.tool_template)


def save_checkpoint(trained: TrainableModel, folder: Path) -> None:
    """Write an ordinary checkpoint, which `edgesdk export` and transformers take."""
    trained.model.save_pretrained(folder)
    if trained.checkpoint.container == "safetensors":
        for name in _TEXT_FILES:
            source = trained.checkpoint.folder / name
            if source.is_file():
                shutil.copyfile(source, folder / name)
        return
    entry = trained.text.entry
    (folder / "tokenizer.json").write_bytes(trained.text.tokenizer_json)
    if trained.text.chat_template is not None:
        (folder / TEMPLATE_NAME).write_text(trained.text.chat_template, encoding="utf-8")
    settings = {
        **entry.special_tokens,
        "bos_token": entry.bos_token,
        "eos_token": entry.eos_token,
        "add_bos_token": entry.add_bos,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    known = {name: value for name, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(known, indent=2) + "\n")
    ends = {"bos_token_id": entry.bos_token_id, "eos_token_id": list(entry.eos_token_ids)}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")


def cut_layers(
    model: Any, keep: int, samples: Sequence[Sample], progress: CutProgress | None = None
) -> tuple[int, ...]:
    """Leave out decoder layers until `keep` are left, the cheapest first; the model is changed.

    Args:
        samples: the text on which leaving out is measured.

    Returns:
        The numbers of the layers that are left, in the whole model.

    Raises:
        RequestError: there are not more than `keep` layers, or the architecture keeps them
            elsewhere.
    """
    layers = _layers_of(model)
    if not 0 < keep < len(layers):
        raise RequestError(
            f"A student of {keep} layers cannot be cut from a model of {len(layers)}.",
            hint=f"Ask for 1 to {len(layers) - 1} layers.",
        )
    whole = [_log_probs(model, sample) for sample in samples]
    left, gone = list(range(len(layers))), 0
    to_go = len(layers) - keep
    while len(left) > keep:
        costs = {index: _cost_without(model, layers, left, index, samples, whole) for index in left}
        left.remove(min(left, key=lambda index: (costs[index], index)))
        gone += 1
        if progress is not None:
            progress(gone, to_go)
    _set_layers(model, [layers[index] for index in left])
    _settle_config(model, left)
    return tuple(left)


def _cost_without(
    model: Any,
    layers: Sequence[Any],
    left: Sequence[int],
    index: int,
    samples: Sequence[Sample],
    whole: Sequence[torch.Tensor],
) -> float:
    _set_layers(model, [layers[other] for other in left if other != index])
    total = 0.0
    for sample, expected in zip(samples, whole, strict=True):
        found = _log_probs(model, sample)
        total += float((expected.exp() * (expected - found)).sum(-1).mean())
    return total


def _log_probs(model: Any, sample: Sample) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([sample.ids])
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        return found


def _layers_of(model: Any) -> list[Any]:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise RequestError(
            f"The layers of a {type(model).__name__} cannot be found, so none can be left out.",
            hint="Train the model as it is, without [student] layers.",
        )
    return list(layers)


def _set_layers(model: Any, layers: Sequence[Any]) -> None:
    model.model.layers = torch.nn.ModuleList(layers)
    # transformers' models loop over as many as the configuration says.
    model.config.num_hidden_layers = len(layers)


def _settle_config(model: Any, left: Sequence[int]) -> None:
    """Make the configuration and the layers agree with what is left."""
    for place, layer in enumerate(model.model.layers):
        for part in layer.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = place
    types = getattr(model.config, "layer_types", None)
    if types is not None:
        model.config.layer_types = [types[index] for index in left]
