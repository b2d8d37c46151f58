"""Pack a LiteRT bundle into one `.litertlm` file, which apps on Android open with LiteRT-LM."""

from __future__ import annotations

import tempfile
from pathlib import Path

from litert_lm_builder import litertlm_builder as lm
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import RequestError
from edgesdk.system.atomic_files import atomic_file


def write_litertlm(bundle: Bundle, path: Path) -> None:
    """Write the `.tflite`, the tokenizer, the chat template and the ends of answers.

    LiteRT-LM renders the chat template by itself, and knows a part of Jinja.

    Raises:
        RequestError: the bundle is not one for LiteRT.
        OSError: the file cannot be written; what stood there is untouched.
    """
    manifest = bundle.manifest
    if manifest.format != "litert":
        raise RequestError(
            f"{bundle.path} is a bundle for {manifest.target!r}, which LiteRT-LM does not run.",
            hint="Export the model with --target litert first.",
        )
    builder = lm.LitertLmFileBuilder()
    builder.add_system_metadata(
        lm.Metadata(key="Authors", value=manifest.exporter, dtype=lm.DType.STRING)
    )
    with tempfile.TemporaryDirectory() as folder:
        # The builder takes files, and reads them when it builds.
        metadata = Path(folder) / "metadata.pb"
        metadata.write_bytes(_metadata(bundle))
        builder.add_llm_metadata(str(metadata))
        builder.add_hf_tokenizer(str(bundle.file(manifest.tokenizer.file)))
        builder.add_tflite_model(
            str(bundle.role_file("decoder")), lm.TfLiteModelType.PREFILL_DECODE
        )
        with atomic_file(path) as stream:
            builder.build(stream)


def _metadata(bundle: Bundle) -> bytes:
    """What LiteRT-LM must know beside the graph."""
    manifest, tokenizer = bundle.manifest, bundle.manifest.tokenizer
    metadata = llm_metadata_pb2.LlmMetadata()
    metadata.max_num_tokens = manifest.shape.context_length
    metadata.llm_model_type.generic_model.SetInParent()
    if tokenizer.add_bos and tokenizer.bos_token_id is not None:
        metadata.start_token.token_ids.ids.append(tokenizer.bos_token_id)
    for end in tokenizer.eos_token_ids:
        metadata.stop_tokens.add().token_ids.ids.append(end)
    if tokenizer.chat_template is not None:
        metadata.jinja_prompt_template = bundle.text(tokenizer.chat_template)
    written: bytes = metadata.SerializeToString(deterministic=True)
    return written
