"""The largest batch that some plan fits."""

from __future__ import annotations

from poolrt.errors import ConfigurationError
from poolrt.planning.counts import MicroBatches
from poolrt.planning.limits import Limits
from poolrt.planning.profile import Profile
from poolrt.planning.task import Task
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
    task = Task(profile=profile, topology=topology, limits=limits, splittable=splittable)
    return largest_batch_of(task, limit=limit, micro_batches=micro_batches)


def largest_batch_of(task: Task, *, limit: int, micro_batches: MicroBatches = "auto") -> int:
    """As `largest_batch`, of what is to be planned.

    Args:
        task: with a profile of a batch of any size.
        limit: the largest batch of interest.
        micro_batches: a number, or "auto" for any.
    """

    def fits(batch_size: int) -> bool:
        scaled = task.scaled(batch_size)
        # More micro-batches hold less at once, so the answer is most often found at the first.
        return any(scaled.is_feasible(count) for count in reversed(scaled.counts(micro_batches)))

    fitting, too_large = 0, 1
    while too_large <= limit and fits(too_large):
        fitting, too_large = too_large, 2 * too_large
    too_large = min(too_large, limit + 1)
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting
