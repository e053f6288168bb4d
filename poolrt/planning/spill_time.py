"""What spilled bytes cost: each is read, or written, over the link to where it lies.

optimizer's state      read and written once a step
its temporaries        written and read once a step
weights                read in every forward and every backward of every micro-batch, and once more, and written,
                       when the optimizer changes them
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from poolrt.planning.pooled_bytes import Tiers
from poolrt.planning.profile import CallFacts, Profile
from poolrt.planning.spill import CardSpill
from poolrt.planning.step_time import StepTime
from poolrt.planning.ways import Ways


def update_s(profile: Profile, ways: Ways, card: int, spill: CardSpill) -> float:
    """Seconds that the optimizer's step of one card spends on reading and writing what is elsewhere."""
    trained = (tiers for position, tiers in spill.layers if profile.layers[position].trainable_nbytes)
    touched = Tiers.sum((*trained, spill.pooled.optimizer, spill.pooled.temporaries))
    return ways.read_s(card, touched) + ways.write_s(card, touched)


def reading_s(
    profile: Profile, ways: Ways, card: int, spill: CardSpill, stage_of: Mapping[str, int], *, micro_batches: int
) -> dict[str, float]:
    """For each layer that reads spilled weights on this card, how much longer that makes each of its calls, each way.

    A call's seconds are those of the whole batch, and every micro-batch reads all the weights. A layer that uses a tied
    weight on the stage of its home reads it there; on another stage it reads a copy.
    """
    own_s = {
        profile.layers[position].name: micro_batches * ways.read_s(card, tiers) for position, tiers in spill.layers
    }
    extra_s: dict[str, float] = defaultdict(float, own_s)
    for tied in profile.tied if own_s else ():
        home, *users = tied.layers
        for user in users:
            extra_s[user] += own_s.get(home, 0.0) if stage_of[user] == stage_of[home] else 0.0
    return dict(extra_s)


def slowed(profile: Profile, extra_s: Mapping[str, float]) -> Profile:
    """The profile with its calls as much slower as `extra_s` says of their layers, each way."""
    if not any(extra_s.values()):
        return profile
    return replace(profile, calls=tuple(_slower(call, extra_s.get(call.layer, 0.0)) for call in profile.calls))


def _slower(call: CallFacts, extra_s: float) -> CallFacts:
    return replace(call, forward_s=call.forward_s + extra_s, backward_s=call.backward_s + extra_s)


def reading_of_step_s(profile: Profile, extra_s: Mapping[str, float], *, trains: bool) -> float:
    """Seconds of a step that a card reads spilled weights, if these are what its layers' calls wait each way."""
    return (1 + trains) * sum(extra_s.get(call.layer, 0.0) for call in profile.calls)


def with_updates(time: StepTime, update_s: Sequence[float], devices: Iterable[str]) -> StepTime:
    """The step with the optimizer's, as far as it waits for spilled bytes. Cards of one device wait one by one."""
    by_device: dict[str, float] = defaultdict(float)
    for device, seconds in zip(devices, update_s, strict=True):
        by_device[device] += seconds
    busy_s = tuple(busy + update for busy, update in zip(time.busy_s, update_s, strict=True))
    return StepTime(step_s=time.step_s + max(by_device.values()), busy_s=busy_s)
