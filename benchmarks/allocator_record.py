"""Records the allocations of one training step of a BERT on the CPU with torch's profiler."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from allocator_trace import Trace, numbered
from bert import BertShape, make_batch, make_bert
from torch.profiler import ProfilerActivity, profile

FULL = BertShape(layers=4, hidden=512, batch_size=16, sequence_length=128)
QUICK = BertShape(layers=2, hidden=128, batch_size=4, sequence_length=64)
ALLOCATION = torch._C._profiler._EventType.Allocation


def record_step(shape: BertShape) -> Trace:
    """The second step of a BERT under AdamW on the CPU: forward, backward, update, gradients let go.

    The first step is not recorded: it makes the optimizer's state.
    """
    model, batch = make_bert(shape), make_batch(shape)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    state = (value for entry in optimizer.state.values() for value in entry.values() if torch.is_tensor(value))
    standing = tuple(tensor.nbytes for tensor in chain(model.parameters(), state))
    return Trace(standing=standing, events=tuple(numbered(_allocations(profiled))))


def _allocations(profiled: profile) -> list[tuple[int, int]]:
    """(address, signed bytes) of what the CPU's allocator did, in the order of time."""
    profiler: Any = profiled.profiler
    waiting: list[Any] = list(profiler.kineto_results.experimental_event_tree())
    found: list[tuple[int, int, int]] = []
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == ALLOCATION and event.extra_fields.device.type == "cpu":
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    return [(address, nbytes) for _time, address, nbytes in sorted(found) if nbytes != 0]
