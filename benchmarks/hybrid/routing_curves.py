"""Measure a confidence as a router: quality against the share of questions that go to the cloud.

Terms are those of RouteLLM (Ong et al. 2024, arXiv:2406.18665): the performance gap recovered, PGR,
is 0 where the device answers everything and 1 where the cloud does; its mean over all shares of
calls is APGR, and CPT is the share of calls that recovers a given part of the gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesdk.errors import InvalidOption

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RoutingCurve:
    """Quality when the k answers of the least confidence are asked of the cloud, k = 0 ... n.

    Attributes:
        quality: share of right answers, float64 [n + 1].
    """

    quality: Floats

    @property
    def local(self) -> float:
        """Quality without the cloud."""
        return float(self.quality[0])

    @property
    def cloud(self) -> float:
        """Quality when the cloud answers everything."""
        return float(self.quality[-1])

    def recovered(self) -> Floats:
        """PGR for each k, float64 [n + 1]. Beyond 1 where the device helps the cloud.

        Raises:
            InvalidOption: the cloud is no better than the device.
        """
        if self.cloud <= self.local:
            raise InvalidOption("There is no gap: the cloud is no better than the device.")
        return (self.quality - self.local) / (self.cloud - self.local)

    def apgr(self) -> float:
        """Mean of PGR over all shares of calls; 0.5 for a random order."""
        found = self.recovered()
        return float(((found[1:] + found[:-1]) / 2).mean())

    def calls_for(self, part: float) -> float:
        """Least share of calls, 0 to 1, that recovers this part of the gap (CPT)."""
        found = self.recovered()
        # Rounding must not ask for one call more.
        first = int(np.argmax(found >= part - 1e-12))
        if first == 0:
            return 0.0
        # Between two whole numbers of calls it is a matter of which questions come.
        before, after = found[first - 1], found[first]
        return float((first - 1 + (part - before) / (after - before)) / (len(found) - 1))


def routing_curve(confidences: Floats, local_right: Flags, cloud_right: Flags) -> RoutingCurve:
    """The curve of a confidence, all arrays [n]. Equal confidences are taken in random order, and
    the curve is the mean over those orders."""
    if not len(confidences) == len(local_right) == len(cloud_right):
        raise InvalidOption("Confidences and labels differ in number.")
    gains = cloud_right.astype(np.float64) - local_right
    _, places, sizes = np.unique(confidences, return_inverse=True, return_counts=True)
    mean_gains = np.bincount(places, weights=gains) / sizes
    steps = np.repeat(mean_gains, sizes)
    right = local_right.sum() + np.concatenate([[0.0], np.cumsum(steps)])
    return RoutingCurve(right / len(gains))


def oracle_curve(local_right: Flags, cloud_right: Flags) -> RoutingCurve:
    """The curve of someone who knows both answers and the truth."""
    return routing_curve(local_right.astype(np.float64) - cloud_right, local_right, cloud_right)
