"""Generators of random numbers, and what they are seeded with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_MASK = (1 << 64) - 1


def generator_of(device: torch.device) -> torch.Generator:
    """The generator that operations on `device` draw from unless they are given another one."""
    if device.type == "cpu":
        return torch.default_generator
    generator: torch.Generator = torch.get_device_module(device).default_generators[device.index or 0]
    return generator


def mixed(words: Sequence[int]) -> int:
    """A 64-bit hash by the finalizer of splitmix64 (Steele, Lea, Flood 2014), one round per word."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
