"""Describe architecture families, one file each: configuration to `DecoderSpec`."""

from edgesdk_export.families.reader import read_decoder as read_decoder

__all__ = ["read_decoder"]
