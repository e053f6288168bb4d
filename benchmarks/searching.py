"""The largest number that works, when all smaller ones do too: doubling, then bisection.

works:   1  2  4  8        doubling stops at 16
fails:               16
then     12 (works)  14 (fails)  13 (works)  -> 13
"""

from __future__ import annotations

from collections.abc import Callable


def largest_that_works(works: Callable[[int], bool], limit: int, step: int = 1) -> int:
    """The largest multiple of `step` up to `limit` for which `works` is true; 0 if not even `step` is.

    `works` is called about 2 log2(answer / step) times, never twice with the same number.
    """
    top = limit // step
    good, bad = 0, top + 1
    count = 1
    while count <= top and works(count * step):
        good, count = count, count * 2
    bad = min(count, top + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if works(middle * step):
            good = middle
        else:
            bad = middle
    return good * step
