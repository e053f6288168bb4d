import pytest
import torch

from poolrt.transfer.measuring.pattern import Patterns, key_of, wrong_bytes
from poolrt.units import KIB, MIB


def splitmix64(position):
    """Of Steele, Lea and Flood, in plain integers."""
    mask = (1 << 64) - 1
    word = (position + 1) * 0x9E3779B97F4A7C15 & mask
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & mask
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & mask
    return word ^ (word >> 31)


def test_words_are_those_of_splitmix64():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # its first number from seed 0, as published with the algorithm
    words = Patterns(64).words(7, 64).tolist()
    assert [word & (1 << 64) - 1 for word in words] == [splitmix64(at) ^ splitmix64(7) for at in range(8)]


def test_every_word_differs_from_every_other_of_all_pairs_and_sizes():
    patterns = Patterns(64 * KIB)
    keys = [key_of(source, target, n) for source, target in ((0, 1), (1, 0), (0, 2)) for n in (8 * KIB, 64 * KIB)]
    words = torch.cat([patterns.words(key, 64 * KIB) for key in keys])
    assert len(words.unique()) == len(words) == len(keys) * 8 * KIB


@pytest.mark.parametrize("place", [0, 5, 12_345_678, 64 * MIB - 1])
def test_one_wrong_byte_in_64_mib_is_found(place):
    expected = Patterns(64 * MIB).words(key_of(0, 1, 64 * MIB), 64 * MIB)
    arrived = expected.clone()
    assert wrong_bytes(arrived, expected) == (0, None)
    arrived.view(torch.uint8)[place] ^= 1
    assert wrong_bytes(arrived, expected) == (1, place)


def test_all_wrong_bytes_are_counted():
    expected = Patterns(KIB).words(1, KIB)
    assert wrong_bytes(~expected, expected) == (KIB, 0)
    moved = torch.roll(expected, 1)
    count, first = wrong_bytes(moved, expected)
    assert count > 0.98 * KIB  # some bytes of some words are equal by chance
    assert first is not None
