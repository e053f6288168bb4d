"""Predicted peaks against a simulator that keeps a ledger, one event after another, written from the rules alone."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolrt.errors import ConfigurationError
from poolrt.planning.memory import MemoryModel, predict_cards
from poolrt.planning.optimizers import optimizer_cost
from poolrt.planning.plan import PredictedBytes
from poolrt.planning.profile import CallFacts, LayerFacts, Profile, TiedParameter, call_path, micro_batch_sizes
from poolrt.planning.schedule import gpipe_order

MIB = 1 << 20


class Ledger:
    """What is on the card, by name, and the most there ever was."""

    def __init__(self):
        self.held = {}
        self.peak = 0

    def put(self, name, nbytes):
        assert name not in self.held
        self.held[name] = nbytes
        self.note()

    def drop(self, *name):
        for known in [known for known in self.held if known[: len(name)] == name]:
            del self.held[known]

    def note(self, on_top=0):
        self.peak = max(self.peak, sum(self.held.values()) + on_top)


class Simulator:
    """One training step on one card."""

    def __init__(self, profile, card_of, card, *, micro_batches, optimizer, gathers):
        self.profile, self.card, self.gathers = profile, card, gathers
        self.cost = optimizer_cost(optimizer)
        sizes = micro_batch_sizes(profile.batch_size, micro_batches)
        self.shares = [Fraction(size, profile.batch_size) for size in sizes]
        self.where = [card_of[call.layer] for call in profile.calls]
        self.card_of = card_of
        self.here = [layer for layer in profile.layers if card_of[layer.name] == card]
        self.ledger = Ledger()
        self.with_gradient = set()

    def run(self, forward=None, backward=None):
        """The peak; `forward` and `backward` give the order of (micro-batch, calls) on this card."""
        calls = [index for index, card in enumerate(self.where) if card == self.card]
        whole = [(micro_batch, calls) for micro_batch in range(len(self.shares))]
        self.begin()
        for micro_batch, visited in whole if forward is None else forward:
            for index in visited:
                self.forward(micro_batch, index)
        if self.gathers and len(self.shares) > 1:
            self.ledger.put(("gathered",), self.profile.gathered_nbytes)
        for micro_batch, visited in whole if backward is None else backward:
            for index in reversed(visited):
                self.backward(micro_batch, index)
        self.end()
        return self.ledger.peak

    def begin(self):
        for layer in self.here:
            self.ledger.put(("weights", layer.name), layer.weight_nbytes)
            self.ledger.put(("optimizer", layer.name), self.cost.state * layer.trainable_nbytes)
        for number, tied in enumerate(self.profile.tied):
            users = [name for name in tied.layers if self.card_of[name] == self.card]
            if users and self.card_of[tied.layers[0]] != self.card:
                self.ledger.put(("copy", number), tied.nbytes)
        if self.where[0] == self.card:
            self.ledger.put(("inputs",), self.profile.input_nbytes)

    def forward(self, micro_batch, index):
        call, share = self.profile.calls[index], self.shares[micro_batch]
        if index:
            read = self.profile.calls[index - 1].output_nbytes
            self.ledger.put(("activation", micro_batch, index, "read"), read * share)
        self.ledger.note(call.forward_workspace_nbytes * share)
        self.ledger.put(("activation", micro_batch, index, "saved"), call.saved_nbytes * share)
        if index == len(self.profile.calls) - 1:
            self.ledger.put(("outputs", micro_batch), self.profile.output_nbytes * share)

    def backward(self, micro_batch, index):
        call, share = self.profile.calls[index], self.shares[micro_batch]
        if self.profile.returns_loss:
            self.ledger.drop("outputs", micro_batch)
        self.ledger.note(call.glue_workspace_nbytes * share)
        self.ledger.held["activation", micro_batch, index, "saved"] -= call.glue_saved_nbytes * share
        temporary = self.add_gradients(call.layer)
        self.ledger.note(call.backward_workspace_nbytes * share + temporary)
        self.ledger.drop("activation", micro_batch, index)
        if not any(name[:2] == ("activation", micro_batch) for name in self.ledger.held):
            self.ledger.drop("outputs", micro_batch)

    def add_gradients(self, name):
        """Make the gradients that are not there yet; the biggest single one that is there already exists twice."""
        layer = self.profile.layer(name)
        parts = {("own", name): (layer.trainable_nbytes, layer.largest_gradient_nbytes)}
        for number, tied in enumerate(self.profile.tied):
            if name in tied.layers:
                parts["tied", number] = (tied.nbytes, tied.nbytes)
            if name == tied.layers[0]:
                nbytes, largest = parts["own", name]
                parts["own", name] = (nbytes - tied.nbytes, largest)
        old = [largest for part, (_, largest) in parts.items() if part in self.with_gradient]
        for part, (nbytes, _) in parts.items():
            if part not in self.with_gradient:
                self.with_gradient.add(part)
                self.ledger.held["gradient", *part] = nbytes
        return max(old, default=0)

    def end(self):
        for name in ("activation", "outputs", "inputs", "gathered"):
            self.ledger.drop(name)
        for number, tied in enumerate(self.profile.tied):
            if self.card_of[tied.layers[0]] != self.card:
                self.ledger.drop("copy", number)
                self.ledger.drop("gradient", "tied", number)
        trainable = sum(layer.trainable_nbytes for layer in self.here)
        kept = {name for name, _ in self.ledger.held.items() if name[0] in ("weights", "optimizer")}
        self.ledger.held = {name: self.ledger.held[name] for name in kept} | {("gradients",): trainable}
        self.ledger.note(self.cost.temporaries * trainable)


optimizers = st.sampled_from(["adamw", "sgd", "sgd-momentum", "adagrad"])


@st.composite
def placed(draw, profiles, **options):
    """A profile, contiguous runs of its layers on up to three cards, and the other choices of a plan."""
    profile = draw(profiles(**options))
    cuts = sorted(draw(st.lists(st.integers(0, len(profile.layers)), min_size=2, max_size=2)))
    card_of = {layer.name: sum(index >= cut for cut in cuts) for index, layer in enumerate(profile.layers)}
    choices = {
        "micro_batches": draw(st.integers(1, profile.batch_size)),
        "optimizer": draw(optimizers),
    }
    return profile, card_of, choices, draw(st.sampled_from([None, 0, 1, 2]))


@settings(max_examples=200)
@given(data=st.data())
def test_the_prediction_is_what_a_ledger_would_show(profiles, data):
    profile, card_of, choices, output_card = data.draw(placed(profiles))
    predicted = predict_cards(profile, card_of, 3, **choices, output_card=output_card)
    for card in range(3):
        simulator = Simulator(profile, card_of, card, **choices, gathers=card == output_card)
        assert predicted[card].total == simulator.run()


@given(data=st.data())
def test_interleaved_visits_differ_by_one_temporary_gradient_at_most(profiles, data):
    profile, card_of, choices, _ = data.draw(placed(profiles, ties=False))
    path = call_path(profile.calls, card_of)
    choices["micro_batches"] = data.draw(st.sampled_from([m for m in range(1, 7) if profile.batch_size % m == 0]))
    forward = gpipe_order(path, choices["micro_batches"])
    backward = gpipe_order(path[::-1], choices["micro_batches"], phase="B")
    predicted = predict_cards(profile, card_of, 3, **choices, output_card=None)
    visits = calls_of_visits(profile, card_of)
    for card in set(path):
        order = [(action.micro_batch, visits[card][action.visit]) for action in forward[card]]
        order_back = [(action.micro_batch, visits[card][::-1][action.visit]) for action in backward[card]]
        peak = Simulator(profile, card_of, card, **choices, gathers=False).run(order, order_back)
        largest = max(layer.largest_gradient_nbytes for layer in profile.layers)
        assert peak <= predicted[card].total + largest


def calls_of_visits(profile, card_of):
    """For each card, the calls of each of its visits."""
    visits, previous = {}, None
    for index, call in enumerate(profile.calls):
        card = card_of[call.layer]
        if card != previous:
            visits.setdefault(card, []).append([])
        visits[card][-1].append(index)
        previous = card
    return visits


@given(data=st.data())
def test_no_peak_is_below_its_floor_or_below_weights_and_state(profiles, data):
    profile, card_of, choices, output_card = data.draw(placed(profiles))
    model = MemoryModel(profile, **choices)
    for card, predicted in enumerate(predict_cards(profile, card_of, 3, **choices, output_card=output_card)):
        held = [index for index, layer in enumerate(profile.layers) if card_of[layer.name] == card]
        weights = sum(profile.layers[index].weight_nbytes for index in held)
        state = optimizer_cost(choices["optimizer"]).state * sum(profile.layers[i].trainable_nbytes for i in held)
        assert predicted.weights >= weights
        assert predicted.optimizer == state
        if held:
            assert predicted.total >= model.floor_nbytes(held[0], held[-1] + 1)


@given(data=st.data(), larger=st.integers(2, 5))
def test_a_larger_batch_never_needs_less(profiles, data, larger):
    profile, card_of, choices, output_card = data.draw(placed(profiles))
    small = predict_cards(profile, card_of, 3, **choices, output_card=output_card)
    large = predict_cards(profile.scaled(larger * profile.batch_size), card_of, 3, **choices, output_card=output_card)
    for before, after in zip(small, large, strict=True):
        assert after.total >= before.total


def test_one_micro_batch_of_a_chain_by_hand(make_chain):
    profile = make_chain(blocks=3)
    predicted = MemoryModel(profile, micro_batches=1, optimizer="sgd").peak(range(3), gathers=True)
    # A gradient (16 MiB) is more than what a block frees (8 MiB), so the peak is at the end of backward.
    assert predicted == PredictedBytes(weights=48 * MIB, gradients=48 * MIB, activations=8 * MIB, workspace=3 * MIB)


def test_the_breakdown_is_that_of_the_highest_moment(make_chain):
    light = make_chain(blocks=2, weight=2 * MIB, saved_nbytes=80 * MIB)
    predicted = MemoryModel(light, micro_batches=1, optimizer="adamw").peak(range(2), gathers=False)
    # The second block goes back first: everything is still there (also the MiB it reads), and only its own gradient.
    assert predicted == PredictedBytes(
        weights=4 * MIB, gradients=2 * MIB, optimizer=8 * MIB, activations=161 * MIB, workspace=3 * MIB
    )


def test_forward_is_highest_in_the_last_micro_batch(make_chain):
    profile = make_chain(blocks=2, weight=MIB, forward_workspace_nbytes=64 * MIB, backward_workspace_nbytes=0)
    predicted = MemoryModel(profile, micro_batches=4, optimizer="sgd").peak(range(2), gathers=False)
    # The second block of the last micro-batch runs. All four have saved 2 MiB of the first block, and 1/4 MiB that the
    # second reads; three have saved 2 MiB of the second.
    assert predicted == PredictedBytes(weights=2 * MIB, activations=(4 * 2 + 1 + 3 * 2) * MIB, workspace=16 * MIB)


def test_a_tied_parameter_is_held_twice_only_on_two_cards():
    layers = (
        LayerFacts(name="embed", weight_nbytes=100, trainable_nbytes=100, largest_gradient_nbytes=100),
        LayerFacts(name="head", weight_nbytes=10, trainable_nbytes=10, largest_gradient_nbytes=10),
    )
    profile = make_profile(layers, tied=(TiedParameter(name="w", nbytes=100, layers=("embed", "head")),))
    together = predict_cards(profile, {"embed": 0, "head": 0}, 2, micro_batches=1, optimizer="sgd", output_card=None)
    apart = predict_cards(profile, {"embed": 0, "head": 1}, 2, micro_batches=1, optimizer="sgd", output_card=None)
    assert (together[0].weights, together[0].gradients) == (110, 110)
    assert (apart[1].weights, apart[1].gradients) == (110, 110)
    assert (apart[0].weights, apart[0].gradients) == (100, 100)


def make_profile(layers, tied=()):
    calls = tuple(
        CallFacts(
            layer=layer.name,
            forward_s=1.0,
            backward_s=2.0,
            saved_nbytes=0,
            forward_workspace_nbytes=0,
            backward_workspace_nbytes=0,
            output_nbytes=0,
        )
        for layer in layers
    )
    return Profile(model="m", batch_size=1, layers=layers, calls=calls, tied=tied)


def test_inference_keeps_no_gradients_and_nothing_saved(make_chain):
    profile = make_chain(blocks=4)
    predicted = MemoryModel(profile, micro_batches=1, optimizer="none").peak(range(4), gathers=False)
    # What a block reads and what it makes, and its workspace.
    assert predicted == PredictedBytes(weights=64 * MIB, activations=2 * MIB, workspace=2 * MIB)


def test_a_card_without_layers_holds_what_is_gathered_there(make_chain):
    profile = make_chain(blocks=2)
    profile = replace(profile, gathered_nbytes=7)
    on_third = predict_cards(profile, {"block.0": 0, "block.1": 1}, 3, micro_batches=2, optimizer="sgd", output_card=2)
    assert on_third[2] == PredictedBytes(activations=7)


def test_more_micro_batches_need_no_more_workspace(make_chain):
    profile = make_chain(blocks=2, weight=MIB, forward_workspace_nbytes=64 * MIB, backward_workspace_nbytes=64 * MIB)
    totals = [
        MemoryModel(profile, micro_batches=count, optimizer="sgd").peak(range(2), gathers=False).total
        for count in (1, 2, 4, 8)
    ]
    assert totals == sorted(set(totals), reverse=True)


def test_an_unknown_optimizer_is_refused(make_chain):
    with pytest.raises(ConfigurationError):
        MemoryModel(make_chain(), micro_batches=1, optimizer="unheard of")
