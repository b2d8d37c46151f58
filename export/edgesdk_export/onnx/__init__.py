"""The ONNX decoder for target `cpu`: onnxruntime's fused operators, streamed weights."""

from edgesdk_export.onnx.parts import PartModel, embed_model, head_model, layer_model
from edgesdk_export.onnx.quantizer import LayerQuantizer
from edgesdk_export.onnx.scheme import WeightScheme, default_bits
from edgesdk_export.onnx.stored import FloatTensors, read_stored
from edgesdk_export.onnx.writer import Progress, WrittenModel, write_decoder

__all__ = [
    "FloatTensors",
    "LayerQuantizer",
    "PartModel",
    "Progress",
    "WeightScheme",
    "WrittenModel",
    "default_bits",
    "embed_model",
    "head_model",
    "layer_model",
    "read_stored",
    "write_decoder",
]
