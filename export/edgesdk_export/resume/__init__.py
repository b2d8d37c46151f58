"""What a killed export had finished, and how the next one goes on from there."""

from edgesdk_export.resume.journal import Journal as Journal
from edgesdk_export.resume.kept import Arrays as Arrays
from edgesdk_export.resume.kept import Kept as Kept
from edgesdk_export.resume.kept import over_layers as over_layers
from edgesdk_export.resume.kept import remembered as remembered

__all__ = ["Arrays", "Journal", "Kept", "over_layers", "remembered"]
