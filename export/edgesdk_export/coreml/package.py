"""Write a Core ML package (`.mlpackage`): a program, its weight file, and the list of both.

The layout is that of coremltools' packages, without their random identifiers: the same decoder
gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from edgesdk.bundle import coreml_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.coreml.decoder_function import decoder_function
from edgesdk_export.coreml.mil import program
from edgesdk_export.coreml.weights import WeightFile
from edgesdk_export.onnx.stored_weights import StoredTensors

_AUTHOR = "com.apple.CoreML"
_PROGRAM, _WEIGHTS = "model.mlmodel", "weights"
# Identifiers are of the package alone; nothing outside it refers to them.
_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")


def write_package(path: Path, spec: DecoderSpec, tensors: StoredTensors, shape: StaticShape) -> int:
    """Write the package of a decoder into the new folder `path`.

    Args:
        tensors: the weights of its ONNX model.
        shape: the sizes of its functions.

    Returns:
        Bits of all weights.

    Raises:
        ExportError: Core ML cannot hold a weight.
    """
    data = path / "Data" / _AUTHOR
    (data / _WEIGHTS).mkdir(parents=True)
    weights = WeightFile(data / _WEIGHTS / "weight.bin", tensors)
    room = coreml_io.cache_room(shape)
    functions = [
        decoder_function(name, spec, weights, size, room)
        for name, size in ((coreml_io.PREFILL, shape.prefill_tokens), (coreml_io.DECODE, 1))
    ]
    model = program(functions, coreml_io.DECODE)
    (data / _PROGRAM).write_bytes(model.SerializeToString(deterministic=True))
    (path / "Manifest.json").write_text(_manifest(), encoding="utf-8")
    return weights.bits


def _manifest() -> str:
    """What stands in the package, as Core ML reads it."""
    program_id, weights_id = (str(uuid.uuid5(_NAMESPACE, name)) for name in (_PROGRAM, _WEIGHTS))
    entries = {
        program_id: ("CoreML Model Specification", _PROGRAM),
        weights_id: ("CoreML Model Weights", _WEIGHTS),
    }
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifier: {
                "author": _AUTHOR,
                "description": description,
                "name": name,
                "path": f"{_AUTHOR}/{name}",
            }
            for identifier, (description, name) in entries.items()
        },
        "rootModelIdentifier": program_id,
    }
    return json.dumps(content, indent=4) + "\n"
