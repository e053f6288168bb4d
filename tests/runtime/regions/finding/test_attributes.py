"""Which numbers a module's code reads, and in which order changes of them are tried."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from poolrt.runtime.regions.finding.attributes import Attribute, search, settings, watched


class Config:
    heads = 4
    unused = 7


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.width, self.index, self.name = Config(), 8, 0, "heads"

    def forward(self, x):
        return x.view(self.config.heads, self.width) * self.index


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.size = Heads(), 32

    def forward(self, x):
        return self.inner(x)


HEADS, WIDTH = Attribute("inner", True, "heads", 4), Attribute("inner", False, "width", 8)
HALF = (Fraction(1, 2), Fraction(1, 2))
UNEVEN = (Fraction(3, 4), Fraction(1, 4))


def test_numbers_that_are_read_are_noted_and_classes_are_taken_back():
    module = Outer()
    classes = [type(inner) for inner in module.modules()]
    with watched(module) as attributes:
        module(torch.zeros(32))
        module(torch.zeros(32))
    assert set(attributes) == {HEADS, WIDTH, Attribute("inner", False, "index", 0)}
    assert len(attributes) == 3
    assert [type(inner) for inner in module.modules()] == classes
    assert type(module.inner.config) is Config


def test_few_changes_are_tried_first():
    tried = list(settings([HEADS, WIDTH], [HALF, UNEVEN], 2))
    assert tried[0] == {}
    assert [len(setting) for setting in tried] == sorted(len(setting) for setting in tried)
    assert {HEADS: (2, 2)} in tried
    assert {HEADS: (3, 1), WIDTH: (6, 2)} in tried


def test_quotients_of_fractions_are_candidates_and_broken_numbers_are_not():
    """Query heads per group of keys: 8 of them on one card, 2 groups; 4 on each of two, a group each."""
    groups = Attribute("", False, "groups", 4)
    tried = [setting.get(groups) for setting in settings([groups], [(Fraction(1, 4),) * 4, (Fraction(1, 2),) * 4], 4)]
    assert (2, 2, 2, 2) in tried
    three = Attribute("", False, "three", 3)
    assert list(settings([three], [HALF], 2)) == [{}]


def test_the_first_setting_without_a_problem_is_taken():
    found = search([HEADS, WIDTH], [HALF], 2, lambda setting: None if WIDTH in setting else "no")
    assert found == {WIDTH: (4, 4)}
    reason = search([HEADS], [HALF], 2, lambda setting: "shapes differ")
    assert "inner.config.heads" in reason
    assert "shapes differ" in reason


def test_very_many_numbers_are_not_all_combined():
    many = [Attribute("", False, f"n{index}", 4) for index in range(20)]
    tried = list(settings(many, [HALF], 2))
    assert max(map(len, tried)) == 2
    assert len(tried) == 1 + 20 + 20 * 19 // 2
