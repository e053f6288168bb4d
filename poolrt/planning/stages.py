"""The line that layers are cut over: a stage is one card, or several cards that run the same layers together.

cards of the topology    0   1   2   3   4
stages                 ( 0   1 )( 2   3 )( 4 )        0, 2 and 4 lead: everything that is not split is theirs
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from poolrt.errors import ConfigurationError
from poolrt.planning.profile import Profile
from poolrt.planning.split_facts import SplitFacts
from poolrt.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Cards that run the same layers together.

    Raises:
        ConfigurationError: if the facts are about another number of cards.
    """

    cards: tuple[int, ...]
    """indices in the topology, the lead card first"""
    facts: SplitFacts
    """stages whose cards have equal shares may share one object; then what is made of it is made once"""

    def __post_init__(self) -> None:
        if len(self.cards) != len(self.facts.weights) or not self.cards:
            raise ConfigurationError(
                f"a stage of cards {list(self.cards)} needs facts about {len(self.cards)} cards, at least one; these "
                f"are about {len(self.facts.weights)}"
            )

    @property
    def lead(self) -> int:
        """The card that holds everything that is not split."""
        return self.cards[0]

    @property
    def members(self) -> tuple[tuple[int, Profile], ...]:
        """(card, the model's profile as that card would run it), the lead card first."""
        return tuple(zip(self.cards, self.facts.profiles, strict=True))


Stages = tuple[Stage, ...]
"""in the order of the line"""


def single_cards(profile: Profile, topology: Topology) -> Stages:
    """Every card a stage of its own."""
    facts = SplitFacts.whole(profile)
    return tuple(Stage(cards=(card.index,), facts=facts) for card in topology.cards)


def joined(facts: Sequence[SplitFacts], stages: Sequence[Sequence[int]], topology: Topology) -> Stages:
    """Cards with what was found out about them.

    Args:
        facts: for each stage.
        stages: for each stage the indices of its cards, the lead card first.
        topology: all cards.

    Raises:
        ConfigurationError: if there is no stage, a card is in two, or there is no such card.
    """
    counted = Counter(card for stage in stages for card in stage)
    unknown = sorted(card for card in counted if not 0 <= card < len(topology))
    twice = sorted(card for card, count in counted.items() if count > 1)
    if not stages or unknown or twice or len(facts) != len(stages):
        raise ConfigurationError(
            f"stages are lists of different cards out of 0..{len(topology) - 1}, such as [[0, 1], [2, 3]], and need "
            f"facts about each: got {[list(stage) for stage in stages]} with facts about {len(facts)}"
        )
    return tuple(Stage(cards=tuple(cards), facts=found) for cards, found in zip(stages, facts, strict=True))


def scaled_stages(stages: Stages, batch_size: int) -> Stages:
    """The stages for a batch of `batch_size` samples; those that shared facts still do."""
    scaled = {id(stage.facts): stage.facts.scaled(batch_size) for stage in stages}
    return tuple(replace(stage, facts=scaled[id(stage.facts)]) for stage in stages)


def profiles_of_cards(stages: Stages, cards: int) -> list[Profile]:
    """For each card of the topology, the model's profile as that card would run it; one in no stage would run all."""
    profiles = [stages[0].facts.profile] * cards
    for card, own in (member for stage in stages for member in stage.members):
        profiles[card] = own
    return profiles
