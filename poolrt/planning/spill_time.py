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


def with_reading(
    profile: Profile,
    ways: Ways,
    spills: Sequence[CardSpill],
    card_of: Mapping[str, int],
    *,
    micro_batches: int,
) -> Profile:
    """The profile with its calls as much slower as reading spilled weights makes them.

    A call's seconds are those of the whole batch, and every micro-batch reads all the weights. A layer that uses a tied
    weight on the card of its home reads it there; on another card it reads a copy.
    """
    own_s = {
        profile.layers[position].name: micro_batches * ways.read_s(card, tiers)
        for card, spill in enumerate(spills)
        for position, tiers in spill.layers
    }
    if not own_s:
        return profile
    extra_s: dict[str, float] = defaultdict(float, own_s)
    for tied in profile.tied:
        home, *users = tied.layers
        for user in users:
            extra_s[user] += own_s.get(home, 0.0) if card_of[user] == card_of[home] else 0.0
    return replace(profile, calls=tuple(_slower(call, extra_s[call.layer]) for call in profile.calls))


def _slower(call: CallFacts, extra_s: float) -> CallFacts:
    return replace(call, forward_s=call.forward_s + extra_s, backward_s=call.backward_s + extra_s)


def reading_s(
    profile: Profile, slowed: Profile, card_of: Mapping[str, int], cards: int, *, trains: bool
) -> list[float]:
    """For each card, seconds of a step that it reads spilled weights, as `slowed` is slower than `profile`."""
    total_s = [0.0] * cards
    for call, slow in zip(profile.calls, slowed.calls, strict=True):
        backward_s = slow.backward_s - call.backward_s if trains else 0.0
        total_s[card_of[call.layer]] += slow.forward_s - call.forward_s + backward_s
    return total_s


def with_updates(time: StepTime, update_s: Sequence[float], devices: Iterable[str]) -> StepTime:
    """The step with the optimizer's, as far as it waits for spilled bytes. Cards of one device wait one by one."""
    by_device: dict[str, float] = defaultdict(float)
    for device, seconds in zip(devices, update_s, strict=True):
        by_device[device] += seconds
    busy_s = tuple(busy + update for busy, update in zip(time.busy_s, update_s, strict=True))
    return StepTime(step_s=time.step_s + max(by_device.values()), busy_s=busy_s)
