"""What may be asked of a plan, for those who hand it on."""

from __future__ import annotations

from typing import TypedDict

from poolrt.planning.counts import MicroBatches
from poolrt.planning.limits import OutputCard, Spill


class PlanOptions(TypedDict, total=False):
    """What `make_plan` takes beside a profile and a topology; see there."""

    micro_batches: MicroBatches
    schedule: str
    optimizer: str
    batch_size: int | None
    splittable: bool
    why_not_split: str
    output_card: OutputCard
    reserve_fraction: float | None
    call_overhead_s: float
    spill: Spill
    host_bytes: int
