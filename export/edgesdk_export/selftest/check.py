"""Refuse a model file that does not compute what its checkpoint computes.

A swapped tensor, a wrong scale or a transposed matrix makes a bundle that looks whole and talks
nonsense, and a quality report that nobody reads does not stop it. So every export ends with the
real file, opened by the engine that will run it, on a few tokens.
"""

from __future__ import annotations

import numpy as np
from edgesdk_quantize.divergence import DivergenceMeter

from edgesdk.errors import ExportError
from edgesdk_export.built_model import BuiltModel
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.selftest.onnx_decoder import Float32
from edgesdk_export.selftest.weight_noise import limit_for, weight_errors_of

TOKENS = 48


def check_model(built: BuiltModel, windows: Windows, progress: ExportProgress) -> None:
    """Run the first window through the written file and through the checkpoint.

    Raises:
        ExportError: the file cannot be run, gives logits that are no numbers, or is further from
            the checkpoint than its formats explain; or the checkpoint's logits are no numbers.
    """
    progress.stage("Testing the file", 3)
    ids = windows.ids[0]
    found = built.run(ids)
    progress.advance(1)
    if not np.isfinite(found).all():
        raise ExportError(
            f"The self-test failed: {built.model_file} gives logits that are NaN or infinite.",
            hint="Choose a format with more bits or a wider range, such as --bits 32.",
        )
    reference = built.reference(ids, None)
    progress.advance(2)
    if not np.isfinite(reference).all():
        raise ExportError("The checkpoint itself gives logits that are NaN or infinite.")
    if reference.shape != found.shape:
        raise ExportError(
            f"The self-test failed: {built.model_file} gives logits of shape {found.shape}, the"
            f" checkpoint {reference.shape}.",
            hint="This is a fault of the export; please report it with the checkpoint's name.",
        )
    noisy = built.reference(ids, weight_errors_of(built.quantization))
    progress.advance(3)
    limit = limit_for(_mean_kl(reference, noisy, ids))
    kl = _mean_kl(reference, found, ids)
    if not kl <= limit:
        raise ExportError(
            f"The self-test failed: on {len(ids)} tokens {built.model_file} has a KL divergence of"
            f" {kl:.3g} from the checkpoint; {built.quantization.weights} weights explain at most"
            f" {limit:.3g}.",
            hint="This is a fault of the export; please report it with the checkpoint's name.",
        )


def _mean_kl(reference: Float32, candidate: Float32, ids: np.ndarray) -> float:
    meter = DivergenceMeter(ids[1:])
    meter.add(reference[:-1], candidate[:-1])
    return float(meter.result().kl.mean())
