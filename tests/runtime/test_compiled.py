"""Scripts that call torch.compile somewhere: results are the whole model's, whatever was given to it.

torch.compile(model), model.compile()     runs as it is, and a warning says so
layer.compile()                           compiled where the layer is whole
a module inside a layer                   likewise
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import poolrt

pytestmark = pytest.mark.usefixtures("one_thread")


class Backend:
    """Runs graphs as they were traced, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend() -> Iterator[Backend]:
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config).double()


def a_batch() -> dict[str, Tensor]:
    ids = torch.arange(64).reshape(8, 8)
    return {"input_ids": ids, "labels": ids}


def whole(model: nn.Module, backend: Backend) -> nn.Module:
    model.compile(backend=backend)
    return model


def wrapped(model: nn.Module, backend: Backend) -> nn.Module:
    return torch.compile(model, backend=backend)


Way = Callable[[nn.Module, Backend], nn.Module]


def each(*names: str) -> Way:
    """Every module whose name ends like one of these."""

    def compile_modules(model: nn.Module, backend: Backend) -> nn.Module:
        for path, module in model.named_modules():
            if path.endswith(names):
                module.compile(backend=backend)
        return model

    return compile_modules


WHOLE: dict[str, Way] = {"model.compile()": whole, "torch.compile(model)": wrapped}
INSIDE: dict[str, Way] = {
    "layers": each("layer.0", "layer.1", "layer.2", "layer.3"),
    "attention": each("attention"),
    "what may be split": each("attention.self", "intermediate"),
}
WAYS = WHOLE | INSIDE
FORMS: dict[str, dict[str, Any]] = {"lanes": {"micro_batches": 4}, "split layers": {"tensor_parallel": 2}}


def shard(model: nn.Module, form: str) -> nn.Module:
    topology = poolrt.virtual(cards=2, memory="64MiB")
    return poolrt.shard(model, sample=a_batch(), topology=topology, **FORMS[form])


def train(model: nn.Module) -> list[float]:
    """Two steps; the losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(**a_batch()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore:poolrt. a pooled model is not compiled")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("way", WAYS)
def test_two_steps_are_those_of_the_model_as_it_is(way: str, before: bool, form: str, backend: Backend):
    reference, model = bert(), bert()
    if before:
        model = WAYS[way](model, backend)
    sharded = shard(model, form)
    assert sharded is model
    assert backend.graphs == 0, "nothing is compiled to be measured"
    if not before:
        model = WAYS[way](sharded, backend)

    assert train(model) == pytest.approx(train(reference), rel=1e-12)
    for (name, expected), actual in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert (actual.detach().cpu() - expected.detach()).abs().max() < 1e-12, name
    assert (backend.graphs > 0) == (way in INSIDE and (form == "lanes" or way != "what may be split"))
    assert poolrt.report(model).plan.tensor_parallel == (1 if form == "lanes" else 2)


@pytest.mark.parametrize("way", WHOLE)
def test_that_the_whole_is_not_compiled_is_said(way: str, backend: Backend):
    model = WHOLE[way](shard(bert(), "lanes"), backend)
    with pytest.warns(UserWarning, match="not compiled as a whole, its forward runs as it is; .* each of them"):
        model(**a_batch())


def test_a_plan_for_a_compiled_model_is_one_for_the_model(backend: Backend):
    topology = poolrt.virtual(cards=2, memory="64MiB")
    model = wrapped(bert(), backend)
    plan = poolrt.plan(model, a_batch(), topology)
    poolrt.shard(model, sample=a_batch(), topology=topology, plan=plan)
    assert poolrt.report(model).plan == plan
    with pytest.raises(poolrt.PoolrtError, match="is sharded already"):
        poolrt.shard(model, sample=a_batch(), topology=topology)


@pytest.mark.filterwarnings("ignore:poolrt. a pooled model is not compiled")
@pytest.mark.parametrize("way", WAYS)
def test_the_first_batch_may_be_seen_in_compiled_code(way: str, backend: Backend):
    model = poolrt.shard(bert(), topology=poolrt.virtual(cards=2, memory="64MiB"), micro_batches=4)
    assert train(WAYS[way](model, backend)) == pytest.approx(train(bert()), rel=1e-12)
