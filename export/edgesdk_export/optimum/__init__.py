"""Export architectures that no family file knows, through optimum in its own environment.

    checkpoint folder -> optimum (its own environment) -> raw ONNX -> attention rewrite -> contract
    of `edgesdk.bundle.graph_io` -> check against torch's logits -> quantize -> model file

Unlike the exporter's own path this one is not streamed: optimum holds the whole model in float32
(about three times its float32 size at the peak).
"""

from edgesdk_export.optimum.build import build_with_optimum

__all__ = ["build_with_optimum"]
