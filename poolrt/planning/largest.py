"""The largest batch that some plan fits."""

from __future__ import annotations

from poolrt.errors import ConfigurationError
from poolrt.planning.counts import MicroBatches, micro_batch_counts
from poolrt.planning.limits import Limits
from poolrt.planning.profile import Profile
from poolrt.planning.spill_search import is_feasible
from poolrt.topology.topology import Topology


def largest_batch(
    profile: Profile,
    topology: Topology,
    *,
    limit: int,
    micro_batches: MicroBatches = "auto",
    splittable: bool = True,
    limits: Limits | None = None,
) -> int:
    """The largest batch, in samples, for which a plan fits; 0 if not even one sample does.

    Found by doubling, then bisection, on the profile scaled to each batch.

    Args:
        profile: what was measured, with a batch of any size.
        topology: the cards.
        limit: the largest batch of interest.
        micro_batches: a number, or "auto" for any.
        splittable: False if the batch must stay whole.
        limits: optimizer, reserve, output card and what the host gives; AdamW by default.

    Raises:
        ConfigurationError: if an argument makes no sense.
    """
    limits = limits or Limits()
    limits.check(topology)
    if limit < 0:
        raise ConfigurationError(f"limit is a number of samples, not {limit}")

    def fits(batch_size: int) -> bool:
        counts = micro_batch_counts(
            micro_batches, batch_size=batch_size, cards=len(topology.cards), splittable=splittable
        )
        scaled = profile.scaled(batch_size)
        # More micro-batches hold less at once, so the answer is most often found at the first.
        return any(is_feasible(scaled, topology, limits, count) for count in reversed(counts))

    fitting, too_large = 0, 1
    while too_large <= limit and fits(too_large):
        fitting, too_large = too_large, 2 * too_large
    too_large = min(too_large, limit + 1)
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting
