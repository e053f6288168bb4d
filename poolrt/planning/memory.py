"""Predicted peak memory of one card, with what fills it at that moment.

The activations are simulated by `moments`; here a profile and a set of layers are turned into what that needs.
Weights and the optimizer's state are always there. Tied parameters live with their first layer; another card that uses
one holds a copy from forward's start to backward's end, and the copy's gradient.

A card that is visited several times runs its calls interleaved; the prediction lets each micro-batch run through them
at once. Forward ends with the same bytes in either order, and backward starts with them, so with micro-batches of one
size the two differ by one temporary gradient at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from poolrt.planning.moments import CardStep, Gradient, HeldCall, Moment
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.profile import Profile, TiedParameter, micro_batch_sizes


class MemoryModel:
    """Predicts peaks for one profile, one optimizer and one number of micro-batches. Made once, asked often.

    Args:
        profile: what was measured; layers and calls are meant by their positions in it.
        micro_batches: how many parts the batch is cut into, at most its size.
        optimizer: a name that `optimizers` knows.

    Raises:
        ConfigurationError: if the optimizer is unknown.
    """

    def __init__(self, profile: Profile, *, micro_batches: int, optimizer: str) -> None:
        self._profile = profile
        self._cost = optimizer_cost(optimizer)
        self._sizes = micro_batch_sizes(profile.batch_size, micro_batches)
        self._positions = {layer.name: position for position, layer in enumerate(profile.layers)}
        self._call_layers = [self._positions[call.layer] for call in profile.calls]
        self._calls_of: list[list[int]] = [[] for _ in profile.layers]
        for index, layer in enumerate(self._call_layers):
            self._calls_of[layer].append(index)
        self._floors = self._prefix_floors()

    def peak(self, layers: Iterable[int], *, gathers: bool) -> PredictedBytes:
        """The predicted bytes at the highest moment of a step, on a card that holds these layers.

        Args:
            layers: positions in `profile.layers`.
            gathers: whether the whole outputs are put together on this card.
        """
        held = frozenset(layers)
        highest = self._highest(held, gathers, temporaries=self._cost.temporaries)
        return replace(highest, optimizer=self._cost.state * self.trainable_nbytes(held))

    def staying(self, layers: Iterable[int], *, gathers: bool) -> PredictedBytes:
        """As `peak`, were the optimizer's state and its step's temporaries elsewhere.

        Weights are there at every moment, so elsewhere they are missing from the sum at each of them.
        """
        return self._highest(frozenset(layers), gathers, temporaries=0)

    def trainable_nbytes(self, layers: Iterable[int]) -> int:
        """Bytes of the parameters of these layers that get a gradient; none in inference."""
        return sum(self._profile.layers[position].trainable_nbytes for position in layers) if self._cost.trains else 0

    def floor_nbytes(self, first: int, last: int) -> int:
        """Never more than the peak of a card that holds layers first..last-1, and quick: saves most calls of `peak`."""
        always, stepping, saved = (sums[last] - sums[first] for sums in self._floors)
        return always + max(stepping, saved)

    @property
    def floor_of_all_nbytes(self) -> int:
        """Never more than the peaks of all cards together, however the layers are cut."""
        always, stepping, saved = (sums[-1] for sums in self._floors)
        return always + max(stepping, saved)

    def _prefix_floors(self) -> tuple[list[int], list[int], list[int]]:
        """Sums over the first n layers: what is always there, what the optimizer's step adds, what forward saves."""
        cost, layers = self._cost, self._profile.layers
        saved = [sum(self._profile.calls[index].saved_nbytes for index in calls) for calls in self._calls_of]
        trains = int(cost.trains)
        return (
            _prefix_sums(layer.weight_nbytes + cost.state * layer.trainable_nbytes for layer in layers),
            _prefix_sums(trains * (1 + cost.temporaries) * layer.trainable_nbytes for layer in layers),
            _prefix_sums(trains * nbytes for nbytes in saved),
        )

    def _highest(self, held: frozenset[int], gathers: bool, *, temporaries: int) -> PredictedBytes:
        """The highest moment, without the optimizer's state; its step needs `temporaries` times what is trained."""
        weights = sum(self._profile.layers[position].weight_nbytes for position in held)
        trainable = self.trainable_nbytes(held)
        batch = self._profile.batch_size
        stepping = Moment(weights * batch, trainable * batch, 0, temporaries * trainable * batch)
        highest = max(self._moments(self._step(held, weights, gathers), stepping), key=sum)
        return PredictedBytes(
            weights=_divide_up(highest.weights, batch),
            gradients=_divide_up(highest.gradients, batch),
            activations=_divide_up(highest.activations, batch),
            workspace=_divide_up(highest.workspace, batch),
        )

    def _moments(self, step: CardStep, stepping: Moment) -> Iterator[Moment]:
        yield from step.forward()
        yield step.between()
        if self._cost.trains:
            yield from step.backward()
            yield stepping

    def _step(self, held: frozenset[int], weights: int, gathers: bool) -> CardStep:
        profile = self._profile
        copies = sum(tied.nbytes for tied in profile.tied if self._is_copied(tied, held))
        return CardStep(
            sizes=self._sizes,
            weights=weights + copies,
            inputs=profile.input_nbytes if self._call_layers[0] in held else 0,
            outputs=profile.output_nbytes if self._call_layers[-1] in held else 0,
            outputs_go_first=profile.returns_loss,
            gathered=profile.gathered_nbytes if gathers and len(self._sizes) > 1 else 0,
            calls=tuple(self._trained_calls(held) if self._cost.trains else self._untrained_calls(held)),
            gradients=tuple(self._gradients(held)) if self._cost.trains else (),
        )

    def _is_copied(self, tied: TiedParameter, held: frozenset[int]) -> bool:
        home, *others = (self._positions[name] for name in tied.layers)
        return home not in held and not held.isdisjoint(others)

    def _gradients(self, held: frozenset[int]) -> Iterator[Gradient]:
        """One for each layer, and one for each tied parameter: that comes with whichever of its layers goes first."""
        own = {position: self._profile.layers[position].trainable_nbytes for position in held}
        for tied in self._profile.tied:
            nbytes = self._trainable(tied)
            users = held & {self._positions[name] for name in tied.layers}
            if users:
                yield Gradient(nbytes, nbytes, users)
            home = self._positions[tied.layers[0]]
            if home in held:
                own[home] = max(0, own[home] - nbytes)
        for position, nbytes in own.items():
            largest = min(nbytes, self._profile.layers[position].largest_gradient_nbytes)
            yield Gradient(nbytes, largest, frozenset((position,)))

    def _trainable(self, tied: TiedParameter) -> int:
        """A profile does not say whether a tied parameter is frozen, but it trains no more than its home layer does."""
        return min(tied.nbytes, self._profile.layers[self._positions[tied.layers[0]]].trainable_nbytes)

    def _calls_on(self, held: frozenset[int]) -> list[int]:
        return sorted(index for layer in held for index in self._calls_of[layer])

    def _trained_calls(self, held: frozenset[int]) -> Iterator[HeldCall]:
        """What calls read and what they save adds up, and stays until backward has passed.

        What a call reads is held once, on its own card: if it crossed, the card it came from lets go of it.
        """
        total = 0
        for index in self._calls_on(held):
            call, layer = self._profile.calls[index], self._call_layers[index]
            total += self._profile.calls[index - 1].output_nbytes if index else 0
            before, total = total, total + call.saved_nbytes
            yield HeldCall(
                layer=layer,
                before=before,
                after=total,
                forward_workspace=call.forward_workspace_nbytes,
                backward_workspace=call.backward_workspace_nbytes,
                glue_saved=call.glue_saved_nbytes,
                glue_workspace=call.glue_workspace_nbytes,
            )

    def _untrained_calls(self, held: frozenset[int]) -> Iterator[HeldCall]:
        """Without backward a call holds what it reads and what it makes, and leaves nothing."""
        for index in self._calls_on(held):
            call = self._profile.calls[index]
            read = self._profile.calls[index - 1].output_nbytes if index else 0
            yield HeldCall(
                layer=self._call_layers[index],
                before=read + call.output_nbytes,
                after=0,
                forward_workspace=call.forward_workspace_nbytes,
            )


def predict_cards(
    profile: Profile,
    card_of: Mapping[str, int],
    cards: int,
    *,
    micro_batches: int,
    optimizer: str,
    output_card: int | None,
) -> tuple[PredictedBytes, ...]:
    """The predicted bytes of every card at its own peak.

    Args:
        profile: what was measured.
        card_of: layer name to card index, for every layer of the profile.
        cards: how many cards there are; one without layers may still gather the outputs.
        micro_batches: how many parts the batch is cut into, at most its size.
        optimizer: a name that `optimizers` knows.
        output_card: where the whole outputs are put together; None for the host.

    Raises:
        ConfigurationError: if the optimizer is unknown.
    """
    held: list[list[int]] = [[] for _ in range(cards)]
    for position, layer in enumerate(profile.layers):
        held[card_of[layer.name]].append(position)
    return predict_held(
        [profile] * cards, held, micro_batches=micro_batches, optimizer=optimizer, output_card=output_card
    )


def predict_held(
    profiles: Sequence[Profile],
    held: Sequence[Iterable[int]],
    *,
    micro_batches: int,
    optimizer: str,
    output_card: int | None,
) -> tuple[PredictedBytes, ...]:
    """As `predict_cards`, where cards may run layers together.

    Args:
        profiles: for each card, the model's profile as that card runs it; the same object where they run it alike.
        held: for each card, positions of the layers it runs, alone or with others.
        micro_batches: how many parts the batch is cut into, at most its size.
        optimizer: a name that `optimizers` knows.
        output_card: where the whole outputs are put together; None for the host.
    """
    models = {id(x): MemoryModel(x, micro_batches=micro_batches, optimizer=optimizer) for x in profiles}
    return tuple(
        models[id(profile)].peak(layers, gathers=card == output_card)
        for card, (profile, layers) in enumerate(zip(profiles, held, strict=True))
    )


def _prefix_sums(values: Iterable[int]) -> list[int]:
    return list(accumulate(values, initial=0))


def _divide_up(nbytes_samples: int, batch_size: int) -> int:
    return -(-nbytes_samples // batch_size)
