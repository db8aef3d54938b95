"""Histograms of durations that can be added up, with fixed bounds that grow by GROWTH.

Whatever falls into one bucket is told as its geometric middle, so no percentile is further off than √GROWTH: 3.9 %.
"""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence

GROWTH = 1.08
LEAST_S = 0.0001
"""All that was quicker is in the first bucket, which is told as this."""
_LOG_GROWTH = math.log(GROWTH)
LAST = math.ceil(math.log(7 * 86_400 / LEAST_S) / _LOG_GROWTH)
"""The number of the last bucket, which has all over a week."""


def bucket(seconds: float) -> int:
    """The number of the bucket, 0 to LAST."""
    if seconds <= LEAST_S:
        return 0
    return min(LAST, 1 + int(math.log(seconds / LEAST_S) / _LOG_GROWTH))


def middle_s(number: int) -> float:
    return LEAST_S if number == 0 else LEAST_S * GROWTH ** (number - 0.5)


def percentiles(counts: Mapping[int, int], ranks: Sequence[float]) -> list[float | None]:
    """For each rank, 0 to 1, the duration in seconds that so much of what was counted did not exceed."""
    total = sum(counts.values())
    if not total:
        return [None] * len(ranks)
    numbers = sorted(counts)
    reached = list(itertools.accumulate(counts[number] for number in numbers))
    wanted = (max(1, math.ceil(rank * total)) for rank in ranks)
    return [middle_s(numbers[bisect.bisect_left(reached, count)]) for count in wanted]
