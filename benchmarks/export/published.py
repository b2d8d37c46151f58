"""Compare exports of published configurations with transformers and llama.cpp, by name.

    python -m benchmarks.export.published                     all of them: some minutes
    python -m benchmarks.export.published Qwen3-4B Gemma-3-1B
    python -m benchmarks.export.published --type f16

Each configuration is shrunk (see `published_configs.py`), filled with seeded random weights by
transformers' own class, saved, and exported as fp32 ONNX and as GGUF. Printed is the largest
difference of any logit from transformers', which loads the same folder: of a prompt at once
(prefill), of the tokens after it one by one (decode), and of those past the window, or past the
original context of a longrope, in one call and one by one. "-" = there is no such place.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.export.published_configs import ORIGINAL, PUBLISHED, VOCAB, WINDOW, shrunk

Logits = npt.NDArray[np.float32]
_END, _START = "<|end|>", "<|start|>"


@dataclass(frozen=True)
class CallPlan:
    """Calls of one sequence, in tokens.

    Attributes:
        prefill: of the first call.
        decode: how many more, one by one, stay within the window or the original context.
        past: sizes of the calls behind it.
        restart: whether the tokens past it are computed from the first one on, as llama.cpp and
            transformers agree on long factors only where the whole text has them.
    """

    prefill: int
    decode: int
    past: tuple[int, ...] = ()
    restart: bool = False


@dataclass(frozen=True)
class Differences:
    """The largest differences of any logit; None = no such place, or a refusal in words."""

    prefill: float | str | None
    decode: float | str | None
    past: float | str | None


@dataclass(frozen=True)
class Row:
    """One configuration."""

    name: str
    largest_logit: float
    onnx: Differences
    gguf: Differences


# Extends one sequence; gives logits [tokens, vocab].
Extend = Callable[[Sequence[int]], Logits]


def measure(name: str, folder: Path, gguf_type: str = "f32") -> Row:
    """Export one configuration into `folder`, and compare."""
    import torch
    from transformers import AutoModelForCausalLM

    fields = _write_checkpoint(name, folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "hf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    plan = _plan(fields)
    total = plan.prefill + plan.decode + sum(plan.past)
    ids = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, total).tolist()
    theirs = _run(plan, ids, lambda: _of_transformers(model))
    onnx = _compared(plan, theirs, _onnx(folder, plan, ids))
    gguf: Differences | str
    try:
        gguf = _compared(plan, theirs, _gguf(folder, plan, ids, gguf_type))
    except _Refused as refused:
        gguf = Differences(str(refused), None, None)
    return Row(name, float(max(np.abs(part).max() for part in theirs if len(part))), onnx, gguf)


class _Refused(Exception):
    pass


def _plan(fields: dict[str, Any]) -> CallPlan:
    scaling = fields.get("rope_scaling") or {}
    if scaling.get("type") == "longrope":
        return CallPlan(ORIGINAL - 60, 12, (ORIGINAL + 30,), restart=True)
    if fields.get("sliding_window") == WINDOW:
        return CallPlan(WINDOW - 10, 10, (20, 1, 1, 1, 1, 1, 1, 12, 1, 1))
    return CallPlan(40, 12)


def _run(
    plan: CallPlan, ids: list[int], start: Callable[[], Extend]
) -> tuple[Logits, Logits, Logits]:
    extend, at = start(), plan.prefill + plan.decode
    prefill = extend(ids[: plan.prefill])
    decode = [extend([token]) for token in ids[plan.prefill : at]]
    if plan.restart:
        extend = start()
    past = []
    for size in plan.past:
        past.append(extend(ids[at : at + size]))
        at += size
    nothing = np.zeros((0, VOCAB), np.float32)
    return prefill, np.concatenate(decode), np.concatenate(past) if past else nothing


def _compared(
    plan: CallPlan, theirs: tuple[Logits, ...], ours: tuple[Logits | None, ...]
) -> Differences:
    found: list[float | str | None] = []
    for expected, part in zip(theirs, ours, strict=True):
        if part is None:
            found.append("context ends there")
        else:
            found.append(float(np.abs(expected - part).max()) if len(expected) else None)
    return Differences(*found)


def _of_transformers(model: Any) -> Extend:
    import torch

    cache = None

    def extend(ids: Sequence[int]) -> Logits:
        nonlocal cache
        with torch.no_grad():
            result = model(torch.tensor([list(ids)]), past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        logits: Logits = result.logits[0].numpy()
        return logits

    return extend


def _onnx(folder: Path, plan: CallPlan, ids: list[int]) -> tuple[Logits | None, ...]:
    from edgesdk_export.checkpoint import open_checkpoint
    from edgesdk_export.families import read_decoder
    from edgesdk_export.onnx import WeightScheme, write_decoder
    from edgesdk_export.selftest.onnx_decoder import SharedCacheDecoder

    decoder = read_decoder(open_checkpoint(folder / "hf"))
    (folder / "onnx").mkdir()
    written = write_decoder(decoder, folder / "onnx", WeightScheme.named("fp32"))

    def start() -> Extend:
        run, held = SharedCacheDecoder(folder / "onnx" / written.model_file, len(ids)), 0

        def extend(part: Sequence[int]) -> Logits:
            nonlocal held
            logits = run(np.array(part, np.int64), held)
            held += len(part)
            return logits

        return extend

    return _run(plan, ids, start)


def _gguf(
    folder: Path, plan: CallPlan, ids: list[int], gguf_type: str
) -> tuple[Logits | None, ...]:
    from edgesdk_export.checkpoint import open_checkpoint
    from edgesdk_export.families import read_decoder
    from edgesdk_export.gguf import file_type_named, vocabulary_metadata, write_gguf
    from edgesdk_export.tokenizers import read_text

    from edgesdk.errors import ExportError

    checkpoint = open_checkpoint(folder / "hf")
    decoder, path = read_decoder(checkpoint), folder / "model.gguf"
    vocabulary = vocabulary_metadata(checkpoint, read_text(checkpoint), VOCAB)
    try:
        write_gguf(decoder, path, file_type_named(gguf_type), name="x", vocabulary=vocabulary)
    except ExportError as error:
        raise _Refused(str(error)) from None
    context = read_decoder(open_checkpoint(path)).spec.context_length
    with _LlamaCpp(path) as model:
        if plan.past and not plan.restart and context < len(ids):
            # llama.cpp computes no windows for this architecture: the file's context ends there.
            short = CallPlan(plan.prefill, plan.decode)
            prefill, decode, _ = _run(short, ids, lambda: model.sequence(256))
            return prefill, decode, None
        # A context no longer than the original one has the short factors.
        sizes = iter((256, 512))
        return _run(plan, ids, lambda: model.sequence(next(sizes)))


class _LlamaCpp:
    """A GGUF in llama.cpp, with a KV cache in float32 and without flash attention."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p())
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        self._contexts: list[Any] = []
        if not self._model:
            raise _Refused("llama.cpp cannot load it")

    def __enter__(self) -> _LlamaCpp:
        return self

    def __exit__(self, *error: object) -> None:
        for context in self._contexts:
            self._api.llama_free(context)
        self._api.llama_model_free(self._model)

    def sequence(self, size: int) -> Extend:
        """A new sequence of up to `size` tokens."""
        api = self._api
        settings = api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = size
        settings.n_threads = settings.n_threads_batch = 1
        settings.type_k = settings.type_v = 0
        settings.flash_attn_type = 0
        if hasattr(settings, "n_outputs_max_per_seq"):
            settings.n_outputs_max_per_seq = 0
        context = api.llama_init_from_model(self._model, settings)
        self._contexts.append(context)
        held = 0

        def extend(ids: Sequence[int]) -> Logits:
            nonlocal held
            batch = api.llama_batch_init(len(ids), 0, 1)
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, held + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            status = api.llama_decode(context, batch)
            api.llama_batch_free(batch)
            if status:
                raise _Refused(f"llama_decode gives {status}")
            held += len(ids)
            rows = np.ctypeslib.as_array(api.llama_get_logits(context), (len(ids), VOCAB))
            return np.array(rows, np.float32)

        return extend


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _SILENT(level: int, text: bytes, data: object) -> None:  # noqa: N802
    pass


def _write_checkpoint(name: str, folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = shrunk(name)
    plain = {key: value for key, value in fields.items() if key != "model_type"}
    config = AutoConfig.for_model(fields["model_type"], **json.loads(json.dumps(plain)))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                # Gains about their start, and biases: a mixed-up one shows.
                weight.add_(noise * 0.3)
            else:
                # An embedding that is the head, too, would make logits of hundreds.
                size = weight.shape[1] ** -0.5
                if "embed" in key:
                    size = 1.5 * size if config.tie_word_embeddings else 0.5
                weight.copy_(noise * size)
    model.save_pretrained(folder)
    # As it was published, not as this release of transformers spells it.
    stored = {**plain, "model_type": fields["model_type"], "dtype": "float32"}
    stored["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(stored))
    _write_tokenizer(folder)
    return fields


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END, _START])
    tokenizer.add_tokens([f"<extra{i}>" for i in range(VOCAB - len(alphabet) - 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": _START, "eos_token": _END, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.1e}"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PUBLISHED)))
@click.option("--type", "gguf_type", default="f32", show_default=True, help="Of the GGUFs.")
def main(names: tuple[str, ...], gguf_type: str) -> None:
    """Print a table of configurations."""
    print(f"| configuration | largest logit | ONNX: prefill | decode | past | {gguf_type} GGUF in"
          " llama.cpp: prefill | decode | past |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name in names or PUBLISHED:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, Path(folder), gguf_type)
        cells = [
            _cell(getattr(found, part))
            for found in (row.onnx, row.gguf)
            for part in ("prefill", "decode", "past")
        ]
        print(f"| {name} | {row.largest_logit:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
