"""Draw and write the ONNX decoder: onnxruntime's fused operators, streamed weights."""

from edgesdk_export.onnx.partial_models import PartialModel, embed_model, head_model, layer_model
from edgesdk_export.onnx.scheme import LayerQuantizer, WeightScheme, default_bits
from edgesdk_export.onnx.stored_weights import FloatTensors, read_stored
from edgesdk_export.onnx.writer import LayerProgress, WrittenModel, write_decoder

__all__ = [
    "FloatTensors",
    "LayerProgress",
    "LayerQuantizer",
    "PartialModel",
    "WeightScheme",
    "WrittenModel",
    "default_bits",
    "embed_model",
    "head_model",
    "layer_model",
    "read_stored",
    "write_decoder",
]
