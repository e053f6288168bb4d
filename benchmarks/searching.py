"""The largest number that works, when all smaller ones do too: strides that double, then bisection.

from nothing    works:   1  2  4  8        the strides stop at 16
                fails:               16
                then     12 (works)  14 (fails)  13 (works)  -> 13

from a guess    12 (works)  13 (works)  15 (fails)  14 (fails)  -> 13
"""

from __future__ import annotations

from collections.abc import Callable


def largest_that_works(works: Callable[[int], bool], limit: int, step: int = 1, guess: int = 0) -> int:
    """The largest multiple of `step` up to `limit` for which `works` is true; 0 if not even `step` is.

    `works` is called about 2 log2(distance of the answer from the guess, in steps) times, never twice with the same
    number. A wrong guess costs calls, never the answer.
    """
    top = limit // step
    good, bad = 0, top + 1
    at, stride = max(1, min(guess // step, top)), 1
    while at <= top and works(at * step):
        good, at, stride = at, at + stride, stride * 2
    bad = min(at, bad)
    while good == 0 and bad > 1:
        at, stride = max(1, bad - stride), stride * 2
        if works(at * step):
            good = at
        else:
            bad = at
    while bad - good > 1:
        middle = (good + bad) // 2
        if works(middle * step):
            good = middle
        else:
            bad = middle
    return good * step
