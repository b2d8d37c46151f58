"""Read a checkpoint as a `Decoder`, and check that its tensors fit its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk.errors import ConfigMismatch
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families.mapping import CheckpointMapping, WeightSource, weight_view
from edgesdk_export.families.registry import reader_of
from edgesdk_export.weights import Decoder, LazyTensor, read_whole, row_chunks


def read_decoder(checkpoint: Checkpoint) -> Decoder:
    """Read a checkpoint as a decoder, and check every tensor's shape against its configuration.

    Weights are read later; only a head beside the embedding is compared with it at once, because
    a head that repeats the embedding is tied, whatever the configuration says.

    Raises:
        UnknownArchitecture: no family file describes it.
        ConfigMismatch: the configuration and the tensors contradict each other, a tensor is
            missing or left over, or the configuration asks for what `DecoderSpec` cannot say.
        CheckpointError: the weights are of a type that cannot be read.
        DamagedCheckpoint: a file was cut since it was opened.
    """
    reading = reader_of(checkpoint)(checkpoint)
    checkpoint = _with_expected_names(checkpoint, reading)
    _refuse_wrapped_names(checkpoint, reading)
    _refuse_uneven_heads(checkpoint, reading.spec)
    spec = replace(reading.spec, tied=_is_tied(checkpoint, reading))
    _refuse_leftovers(checkpoint, reading)
    return Decoder(spec, weight_views(checkpoint, reading.sources, canonical_shapes(spec)))


def weight_views(
    checkpoint: Checkpoint,
    sources: Mapping[str, WeightSource],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, LazyTensor]:
    """Canonical weights over a checkpoint's tensors; raises as `read_decoder` does."""
    fused_rows: dict[str, int] = {}
    for source in sources.values():
        if source.stop is not None:
            fused_rows[source.tensor] = max(source.stop, fused_rows.get(source.tensor, 0))

    weights: dict[str, LazyTensor] = {}
    probed: set[str] = set()
    for name, shape in shapes.items():
        source = sources[name]
        stored = (fused_rows.get(source.tensor, shape[0]), *shape[1:])
        tensor = checkpoint.tensors.get(source.tensor)
        if tensor is None:
            raise ConfigMismatch(
                f"{checkpoint.path}: tensor '{source.tensor}' is missing; by the configuration "
                f"its shape is {list(stored)}.",
                hint="Check that the configuration is the one that came with these weights.",
            )
        if tensor.shape != stored:
            raise ConfigMismatch(
                f"{checkpoint.path}: tensor '{source.tensor}' has shape {list(tensor.shape)}; by "
                f"the configuration it is {list(stored)}.",
                hint="Check that the configuration is the one that came with these weights.",
            )
        if tensor.dtype not in probed:
            # A type that cannot be read is refused now, not halfway through the export.
            tensor.rows(0, 1)
            probed.add(tensor.dtype)
        weights[name] = weight_view(tensor, source)
    return weights


def _with_expected_names(checkpoint: Checkpoint, reading: CheckpointMapping) -> Checkpoint:
    """Names as transformers reads them: "model." may be left out, as where the model was saved
    without its head; a tied embedding may stand under the head's name only."""
    wanted = {source.tensor for source in reading.sources.values()} | {reading.head}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        longer = f"model.{name}"
        bare = name not in wanted and longer in wanted and longer not in checkpoint.tensors
        tensors[longer if bare else name] = tensor
    embedding = reading.sources["embed.weight"].tensor
    if reading.spec.tied and embedding not in tensors and reading.head in tensors:
        tensors[embedding] = tensors[reading.head]
    return replace(checkpoint, tensors=tensors)


# What stands before every tensor's name where a model was saved inside something that wrapped it.
_WRAPPERS = {
    "base_model.model.": "PEFT",
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
}


def _refuse_wrapped_names(checkpoint: Checkpoint, reading: CheckpointMapping) -> None:
    embedding = reading.sources["embed.weight"].tensor
    for start, wrapper in _WRAPPERS.items():
        wrapped = [name for name in checkpoint.tensors if name.startswith(start)]
        if not wrapped or embedding in checkpoint.tensors:
            continue
        if any(".lora_" in name for name in wrapped):
            hint = "Merge the adapter first: model.merge_and_unload().save_pretrained(FOLDER)."
        elif wrapper == "PEFT":
            hint = (
                "Save the merged model itself: model.merge_and_unload().save_pretrained(FOLDER),"
                " not the model that get_peft_model gave."
            )
        else:
            hint = f"Save the model itself, not {wrapper}'s wrapper around it."
        raise ConfigMismatch(
            f"{checkpoint.path}: {len(wrapped):,} tensors have {wrapper}'s names, such as"
            f" '{wrapped[0]}'; transformers finds none of its weights under them.",
            hint=hint,
        )


def _refuse_uneven_heads(checkpoint: Checkpoint, spec: DecoderSpec) -> None:
    if spec.heads % spec.kv_heads:
        raise ConfigMismatch(
            f"{checkpoint.path}: {spec.heads} attention heads cannot share {spec.kv_heads} KV heads"
            " evenly; neither onnxruntime, llama.cpp nor transformers computes that.",
            hint="Correct the number of KV heads (num_key_value_heads) to that of the training: a"
            f" divisor of {spec.heads}.",
        )


def _is_tied(checkpoint: Checkpoint, reading: CheckpointMapping) -> bool:
    head = checkpoint.tensors.get(reading.head)
    embedding = checkpoint.tensors.get(reading.sources["embed.weight"].tensor)
    if head is None or embedding is None:
        return reading.spec.tied
    same = head.shape == embedding.shape and all(
        np.array_equal(one, other)
        for one, other in zip(row_chunks(head), row_chunks(embedding), strict=True)
    )
    if reading.spec.tied and not same:
        raise ConfigMismatch(
            f"{checkpoint.path}: the configuration ties the head to the embedding, but tensor "
            f"'{reading.head}' differs from it.",
            hint="Set tie_word_embeddings to what the model was trained with.",
        )
    return same


def _refuse_leftovers(checkpoint: Checkpoint, reading: CheckpointMapping) -> None:
    used = {source.tensor for source in reading.sources.values()} | {reading.head}
    unknown = [
        name
        for name in checkpoint.tensors
        if name not in used
        and not any(fnmatchcase(name, known) for known in reading.settled)
        and not _adds_nothing(name, checkpoint.tensors[name])
    ]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ConfigMismatch(
            f"{checkpoint.path}: tensor '{unknown[0]}'{more} has no place in a "
            f"{reading.spec.family} decoder of this configuration.",
            hint="Take the configuration that came with these weights: by this one"
            f" {'llama.cpp' if checkpoint.container == 'gguf' else 'transformers'} has no place"
            " for it either.",
        )


def _adds_nothing(name: str, tensor: LazyTensor) -> bool:
    """A bias of zeros, as AutoGPTQ gives to layers that have none."""
    return name.endswith(".bias") and len(tensor.shape) == 1 and not read_whole(tensor).any()
