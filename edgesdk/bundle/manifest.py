"""`edgesdk.json`: what a bundle says of itself.

Every value is frozen and checked when it is read: a manifest may come from anywhere. Nothing in
it depends on the clock or on the machine, so the same export gives the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edgesdk.bundle.sampling import Sampling
from edgesdk.errors import DamagedBundle, UnsupportedBundle

MANIFEST_NAME = "edgesdk.json"
FORMAT_VERSION = 2

AnyManifest = TypeVar("AnyManifest", bound=BaseModel)

BundleFormat = Literal["onnx", "gguf", "coreml", "litert"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(gt=0, lt=2**40)]
# What a file is for: "decoder" reads prompts and writes answers; where one graph of fixed shapes
# cannot do both, "prefill" and "decode" share the work. "encoder" reads texts and writes none. The
# others are beside it.
Role = Literal[
    "decoder", "prefill", "decode", "encoder", "adapter", "draft", "embedding", "confidence"
]
Pooling = Literal["mean", "cls", "last"]
# Engines go through all layers when they open a bundle. No decoder has more than some hundreds.
Layers = Annotated[int, Field(gt=0, le=4096)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FileEntry(_Record):
    """One file of the bundle: its size in bytes and its hash."""

    name: str
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        parts = PurePosixPath(name).parts
        plain = re.fullmatch(r"[A-Za-z0-9._/-]+", name)
        if not plain or name.startswith("/") or ".." in parts or not parts:
            raise ValueError(f"{name!r} is not a file inside the bundle")
        return name


class ModelShape(_Record):
    """What an engine must know of a decoder, whoever exported it.

    `sliding_window` is the largest window among the windowed layers (None: every layer sees the
    whole context). `context_length` is in tokens.
    """

    architecture: str
    layers: Layers
    hidden_size: Count
    heads: Count
    kv_heads: Count
    head_size: Count
    vocab_size: Count
    context_length: Count
    sliding_window: Count | None = None
    parameters: Count

    def kv_bytes_per_token(self, bytes_per_value: int = 4) -> int:
        """Bytes of KV cache that one token takes (float32 by default)."""
        return 2 * self.layers * self.kv_heads * self.head_size * bytes_per_value


class StaticShape(_Record):
    """The sizes of graphs of fixed shapes; see `edgesdk.bundle.static_io`.

    Attributes:
        prefill_tokens: tokens that the prefill graph takes at a time. A power of two, so that a
            prompt is cut at the same places however it is handed over.
        window: past tokens whose keys and values a graph takes.
        logits_rows: of how many tokens, the last ones, the prefill graph gives logits.
        dtype: of all inputs and outputs but the token ids.
        mask_value: what is added to the score of a token that may not be seen. Finite, because
            NPUs make NaN of infinities.
    """

    prefill_tokens: Annotated[int, Field(ge=2, le=256)]
    window: Count
    logits_rows: Annotated[int, Field(ge=1, le=256)] = 1
    dtype: Literal["float16", "float32"] = "float16"
    mask_value: Annotated[float, Field(ge=-60_000, lt=0, allow_inf_nan=False)] = -10_000.0

    @field_validator("prefill_tokens")
    @classmethod
    def _is_a_power_of_two(cls, tokens: int) -> int:
        if tokens & (tokens - 1):
            raise ValueError(f"{tokens} is no power of two")
        return tokens

    def line(self) -> str:
        """In words: "of fixed shapes: 128 tokens at a time, or one; window 1,024; float16"."""
        return (
            f"of fixed shapes: {self.prefill_tokens} tokens at a time, or one; window"
            f" {self.window:,}; {self.dtype}"
        )


class TokenizerEntry(_Record):
    """The text side: files, and the special tokens that templates and stopping need.

    `template_problem` says why there is no chat template, where the exporter knows. `tool_template`
    takes the chat template's place in prompts with tools. `special_tokens` has the texts of others
    than BOS and EOS, by the names that templates know ("pad_token").
    """

    file: str = "tokenizer.json"
    chat_template: str | None = None
    tool_template: str | None = None
    template_problem: str | None = None
    add_bos: bool = False
    bos_token: str | None = None
    bos_token_id: Annotated[int, Field(ge=0)] | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    special_tokens: dict[str, str] = {}


class EmbeddingEntry(_Record):
    """How the hidden states of a text become its vector.

    Attributes:
        pooling: their mean, the first one ("cls"), or the last one.
        normalize: whether vectors get the length 1.
        max_tokens: of a text, special tokens included.
        prompts: what is put before a text, by the name of its purpose ("query").
        default_prompt: the one that is put there where nobody asks for another.
        suffix: ids that a decoder reads after a text; an encoder's stand in its tokenizer.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    max_tokens: Count
    prompts: dict[str, str] = {}
    default_prompt: str | None = None
    suffix: tuple[Annotated[int, Field(ge=0)], ...] = ()


class RerankingEntry(_Record):
    """How a query and a document become a score.

    `max_tokens` is of both together; `sigmoid` says whether the score is made one from 0 to 1.
    """

    max_tokens: Count
    sigmoid: bool = True


class SourceCheckpoint(_Record):
    """The checkpoint that came in. `sha256` covers its weight files, in name order."""

    name: str
    container: Literal["safetensors", "gguf"]
    sha256: Sha256
    dtypes: tuple[str, ...]


def checkpoint_name(path: Path) -> str:
    """What a checkpoint's folder is called. In a hub's cache (`models--ORG--NAME/snapshots/HASH`)
    it is called by a commit, and the model by the folder above."""
    folder = path.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.rpartition("--")[2] or folder.name
    return folder.name


class SourceBlocks(_Record):
    """What became of the matrices that the checkpoint itself stores in blocks of one type.

    `relative_error` is that of rounding them once more into `stored`: the root of the summed
    squared differences over that of the summed squared values. 0 = their values were kept.
    """

    source: str
    stored: str
    tensors: Count
    relative_error: Annotated[float, Field(ge=0)]

    def line(self) -> str:
        """In words: "Q4_0: 28 kept exactly as int4-symmetric"."""
        if self.relative_error == 0:
            return f"{self.source}: {self.tensors:,} kept exactly as {self.stored}"
        return (
            f"{self.source}: {self.tensors:,} rounded again to {self.stored}, relative error"
            f" {self.relative_error:.2%}"
        )


class Quantization(_Record):
    """How the weights were stored. `bits_per_weight` counts scales and zero-points;
    `source_blocks` is empty where the checkpoint has floats."""

    weights: str
    head: str
    method: str
    bits_per_weight: float
    source_blocks: tuple[SourceBlocks, ...] = ()


class Quality(_Record):
    """The bundle against the checkpoint that came in, on the same tokens.

    KL divergence is in nats per token, KL(checkpoint || bundle); `top1_agreement` is the share of
    positions where both rank the same token first. The errors of perplexities are standard errors;
    None in bundles that were made before they were measured. `weights_only`: the stored weights
    were computed with in float32; what an engine's kernels round beside that is not counted.
    """

    tokens: Count
    text_name: str
    text_sha256: Sha256
    kl_mean: float
    kl_median: float
    kl_p99: float
    top1_agreement: Annotated[float, Field(ge=0, le=1)]
    perplexity: float
    checkpoint_perplexity: float
    perplexity_error: float | None = None
    checkpoint_perplexity_error: float | None = None
    weights_only: bool = False

    def line(self) -> str:
        """The one-line summary that the command line prints."""
        return (
            f"KL {self.kl_mean:.4f} (median {self.kl_median:.4f}, p99 {self.kl_p99:.3f})"
            f" · top-1 agreement {self.top1_agreement:.1%}"
            f" · perplexity {_with_error(self.perplexity, self.perplexity_error)} against"
            f" {_with_error(self.checkpoint_perplexity, self.checkpoint_perplexity_error)}"
            f" · {self.tokens:,} tokens of {self.text_name}"
            f"{' · of the weights, in float32' if self.weights_only else ''}"
        )


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


class Manifest(_Record):
    """The whole of `edgesdk.json`.

    Attributes:
        target: the device that it was exported for, as `edgesdk.engines.devices` names it.
        roles: what an engine opens for each role: a file, or a folder of files.
        static: the sizes of "prefill" and "decode"; None where "decoder" takes texts of any length.
        sampling: what the model's makers recommend; None for the likeliest token, always.
        notes: what its user should know of the export, a sentence each.
        embedding: of a model that makes vectors of texts; also of a decoder that does.
        reranking: of an encoder that scores pairs of texts.
    """

    format_version: Literal[2] = 2
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}$")]
    format: BundleFormat
    target: str
    roles: Annotated[dict[Role, str], Field(min_length=1)]
    shape: ModelShape
    static: StaticShape | None = None
    spec: dict[str, Any] | None
    tokenizer: TokenizerEntry
    source: SourceCheckpoint
    quantization: Quantization
    quality: Quality | None = None
    sampling: Sampling | None = None
    licence: str | None = None
    exporter: str
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    embedding: EmbeddingEntry | None = None
    reranking: RerankingEntry | None = None
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _names_its_files(self) -> Manifest:
        names = [entry.name for entry in self.files]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        if "encoder" in self.roles and (self.embedding is None) == (self.reranking is None):
            raise ValueError("an encoder either embeds or scores")
        # A Core ML package is a folder.
        folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
        for role_file in self.roles.values():
            if role_file not in names and role_file not in folders - {"."}:
                raise ValueError(f"{role_file!r} is not among its files")
        for needed in (
            self.tokenizer.file,
            self.tokenizer.chat_template,
            self.tokenizer.tool_template,
        ):
            if needed is not None and needed not in names:
                raise ValueError(f"{needed!r} is not among its files")
        return self

    def to_json(self) -> str:
        """Canonical text: the same manifest always gives the same bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def parse_manifest(text: str | bytes, *, where: str) -> Manifest:
    """Read a manifest.

    Raises:
        UnsupportedBundle: it was written for another version of the format.
        DamagedBundle: it is not JSON, or a field is missing, unknown or out of range.
    """
    return parse_versioned(Manifest, FORMAT_VERSION, text, where=where, of="model", hint=_HINT)


def parse_versioned(
    kind: type[AnyManifest], known: int, text: str | bytes, *, where: str, of: str, hint: str
) -> AnyManifest:
    """Read a manifest of a kind whose `format_version` is to be `known`; see `parse_manifest`.

    Args:
        of: what it describes, as "model".
        hint: what to do where it is damaged.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedBundle(f"{where} is not valid JSON: {error}.", hint=hint) from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version != known:
        raise UnsupportedBundle(
            f"{where} has format version {version}; this edgesdk reads version {known}.",
            hint=f"Upgrade edgesdk, or export the {of} again.",
        )
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise DamagedBundle(f"{where}: {place}: {first['msg']}.", hint=hint) from None


_HINT = "Pull or export the model again."
