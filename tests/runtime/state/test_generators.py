"""Seeds made of several numbers, and whose generator a device has."""

from __future__ import annotations

from itertools import product

import torch

from poolrt.runtime.state.generators import generator_of, mixed


def test_one_word_is_splitmix64() -> None:
    """The first numbers of the published generator, seeded with 0 and with 1234567."""
    assert mixed((0,)) == 0xE220A8397B1DCDAF
    assert mixed((1234567,)) == 6457827717110365317


def test_words_in_another_order_or_number_give_another_seed() -> None:
    words = [*product(range(4), repeat=2), *product(range(4), repeat=3)]
    assert len({mixed(each) for each in words}) == len(words)


def test_a_device_draws_from_its_generator(devices: tuple[torch.device, torch.device]) -> None:
    for device in (torch.device("cpu"), *devices):
        generator_of(device).manual_seed(3)
        first = torch.rand(4, device=device)
        generator_of(device).manual_seed(3)
        assert torch.equal(torch.rand(4, device=device), first)
