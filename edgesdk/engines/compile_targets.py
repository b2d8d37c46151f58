"""The processors that providers compile models for, also where they are not here."""

from __future__ import annotations

from edgesdk.engines.device_record import CompileTarget


def _snapdragon(soc_model: int, htp_arch: int, title: str) -> CompileTarget:
    """Both are always set: without either, Qualcomm's compiler leaves MatMulNBits on the CPU."""
    options = (("soc_model", str(soc_model)), ("htp_arch", str(htp_arch)))
    return CompileTarget(str(soc_model), title, options)


# Models and architectures by Qualcomm's enumeration (QnnTypes.h of its AI Runtime SDK, and
# https://docs.qualcomm.com/doc/80-63442-10/topic/QNN_general_overview.html#supported-snapdragon-devices),
# names by https://ai.google.dev/edge/litert/next/qualcomm and Qualcomm's product pages.
SNAPDRAGONS = (
    _snapdragon(60, 73, "Snapdragon X Elite, SC8380XP"),
    _snapdragon(88, 81, "Snapdragon X2 Elite, SC8480XP"),
    _snapdragon(36, 69, "Snapdragon 8 Gen 1, SM8450"),
    _snapdragon(43, 73, "Snapdragon 8 Gen 2, SM8550"),
    _snapdragon(57, 75, "Snapdragon 8 Gen 3, SM8650"),
    _snapdragon(69, 79, "Snapdragon 8 Elite, SM8750"),
    _snapdragon(87, 81, "Snapdragon 8 Elite Gen 5, SM8850"),
)
HTP_PERFORMANCE_MODES = (
    *("default", "burst", "balanced", "high_performance", "sustained_high_performance"),
    *("low_balanced", "power_saver", "low_power_saver", "high_power_saver", "extreme_power_saver"),
)

# The generations of Intel's NPUs as OpenVINO 2026.4's NPU_PLATFORM names them, and what has them by
# https://github.com/intel/linux-npu-driver/releases (v1.33.0).
INTEL_NPUS = tuple(
    CompileTarget(name, title, (("NPU_PLATFORM", name),))
    for name, title in (
        ("4000", "NPU 4, Lunar Lake"),
        ("5010", "NPU 5, Panther Lake"),
        ("5020", "NPU 5 with one tile"),
        ("6010", "NPU 6"),
        ("3720", "NPU 3, Meteor Lake and Arrow Lake"),
    )
)
