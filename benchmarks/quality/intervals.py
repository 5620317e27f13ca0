"""Intervals: Wilson's for a share, the standard error's for a mean of paired differences."""

import math


def wilson(hits, count, z=1.96):
    """(share, low, high) of hits among count."""
    if not count:
        return math.nan, 0.0, 1.0
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return share, centre - half, centre + half


def mean_and_half(values, z=1.96):
    """(mean, half width of its interval)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, z * math.sqrt(variance / len(values))
