"""Go on with a killed export where it stopped."""

from edgesdk_export.resume.state import Arrays as Arrays
from edgesdk_export.resume.state import ResumeState as ResumeState
from edgesdk_export.resume.state import SectionJournal as SectionJournal
from edgesdk_export.resume.state import carry_through_layers as carry_through_layers
from edgesdk_export.resume.state import compute_once as compute_once

__all__ = ["Arrays", "ResumeState", "SectionJournal", "carry_through_layers", "remembered"]
