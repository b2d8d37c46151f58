"""Turn a LoRA that PEFT saved into an adapter for a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import edgesdk
from edgesdk.bundle.adapter import (
    Adapter,
    AdapterManifest,
    AdapterRole,
    BaseBundle,
    is_adapter,
    open_adapter,
)
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.bundle.writing import staged_folder, write_adapter_manifest
from edgesdk.errors import ExportError
from edgesdk_export.adapters import gguf_adapter, onnx_adapter
from edgesdk_export.adapters.low_rank import LowRankWeights
from edgesdk_export.adapters.peft_folder import read_peft_folder

_FLOAT32_BITS = 31.0


@dataclass(frozen=True)
class AdapterJob:
    """What to make an adapter of.

    Attributes:
        peft_folder: what PEFT's `save_pretrained` wrote.
        bundle: the folder of the bundle that the adapter is for.
        destination: the folder that it becomes.
        name: what receipts and servers will call it.
        replace: whether an adapter at `destination` may be replaced.
    """

    peft_folder: Path
    bundle: Path
    destination: Path
    name: str
    replace: bool = False


def export_adapter(job: AdapterJob) -> Adapter:
    """Write an adapter: whole, or not at all.

    Its weights are float32 for a bundle of float32 weights, and float16 for all others, whose own
    rounding is far coarser.

    Raises:
        CheckpointError: the PEFT folder is no LoRA, damaged, has settings that adapters do not
            have, or is of another model than the bundle.
        ExportError: the bundle is of a kind that runs no adapters, or a weight is too large for
            float16.
        BundleError: the bundle cannot be opened, or something stands at `destination`.
    """
    bundle = open_bundle(job.bundle)
    spec = _adaptable_spec(bundle)
    weights = read_peft_folder(job.peft_folder, spec, where=str(bundle.path))
    dtype = _dtype(bundle, weights)
    with staged_folder(job.destination, replace=job.replace, replaceable=is_adapter) as stage:
        roles: dict[AdapterRole, str]
        if bundle.manifest.format == "onnx":
            onnx_adapter.write_onnx_adapter(weights, spec, bundle, stage, dtype)
            roles = {"adapter": onnx_adapter.WEIGHTS_FILE, "decoder": onnx_adapter.GRAPH_FILE}
        else:
            gguf_adapter.write_gguf_adapter(weights, spec, stage, dtype, name=job.name)
            roles = {"adapter": gguf_adapter.WEIGHTS_FILE}
        manifest = AdapterManifest.model_construct(
            name=job.name,
            format=bundle.manifest.format,
            base=BaseBundle(name=bundle.manifest.name, sha256=bundle.sha256),
            roles=roles,
            rank=weights.rank,
            targets=weights.targets,
            parameters=weights.parameters,
            dtype=dtype,
            source_sha256=weights.sha256,
            exporter=f"edgesdk {edgesdk.__version__}",
            files=(),
        )
        write_adapter_manifest(stage, manifest)
    return open_adapter(job.destination)


def _adaptable_spec(bundle: Bundle) -> DecoderSpec:
    manifest = bundle.manifest
    spec = bundle.decoder_spec()
    if manifest.format not in ("onnx", "gguf") or "decoder" not in manifest.roles or spec is None:
        raise ExportError(
            f"{bundle.path} ({manifest.format}, for {manifest.target}) runs no adapters: only ONNX"
            " bundles for cpu that edgesdk's own exporter made do, and GGUF bundles.",
            hint="Merge it: edgesdk export CHECKPOINT --merge-adapter PEFT_FOLDER.",
        )
    return spec


def _dtype(bundle: Bundle, weights: LowRankWeights) -> Literal["float16", "float32"]:
    if bundle.manifest.quantization.bits_per_weight > _FLOAT32_BITS:
        return "float32"
    largest = max(
        float(np.abs(part).max(initial=0))
        for change in weights.changes.values()
        for part in (change.down, change.up)
    )
    if largest > np.finfo(np.float16).max:
        raise ExportError(
            f"The adapter has a weight of {largest:g}, which float16 cannot hold.",
            hint="Train it again: weights of this size mean that training diverged.",
        )
    return "float16"
