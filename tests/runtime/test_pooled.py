"""What users do around a model in a training script works as before on a pooled one."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import poolrt

pytestmark = pytest.mark.usefixtures("one_thread")


def pair(make=zoo.Tied, batch_of=zoo._tied_batch, micro_batches: int = 3, **options: Any) -> tuple[Any, Any, Any]:
    """(unsharded, pooled, batch), both with the same weights in fp64."""
    torch.manual_seed(0)
    plain = make().double().train()
    batch = batch_of()
    pooled = copy.deepcopy(plain)
    topology = poolrt.virtual(cards=2, memory="64MiB")
    poolrt.shard(pooled, topology=topology, sample=batch, micro_batches=micro_batches, **options)
    assert poolrt.report(pooled).plan.micro_batches == micro_batches
    return plain, pooled, batch


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.cpu() for p in model.parameters() if p.grad is not None]


def assert_close(expected: list[Tensor], actual: list[Tensor]) -> None:
    scale = max(t.abs().max().item() for t in expected)
    for a, b in zip(expected, actual, strict=True):
        assert (a - b.cpu()).abs().max().item() <= 1e-12 * scale


def test_a_loss_written_by_the_user_on_the_outputs():
    plain, pooled, batch = pair()
    for model in (plain, pooled):
        logits = model(**batch)["logits"]
        F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1).backward()
    assert_close(gradients(plain), gradients(pooled))


def test_outputs_are_where_the_batch_came_from():
    _, pooled, batch = pair()
    assert {value.device.type for value in pooled(**batch).values()} == {"cpu"}
    on_card = {name: value.to("vcard:0") for name, value in batch.items()}
    assert {value.device for value in pooled(**on_card).values()} == {torch.device("vcard:0")}


def test_gradient_accumulation_and_scaling_in_place():
    plain, pooled, batch = pair()
    for model in (plain, pooled):
        for _ in range(2):
            loss = model(**batch)["loss"]
            loss /= 2
            loss.backward()
    assert_close(gradients(plain), gradients(pooled))


def test_autograd_grad_returns_gradients_and_leaves_grad_alone():
    plain, pooled, batch = pair()
    ours, theirs = (
        torch.autograd.grad(model(**batch)["loss"] * 7, list(model.parameters())) for model in (pooled, plain)
    )
    assert_close(list(theirs), list(ours))
    assert all(p.grad is None for p in pooled.parameters())


def test_a_second_backward_needs_retain_graph():
    plain, pooled, batch = pair()
    for model in (plain, pooled):
        loss = model(**batch)["loss"]
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    assert_close(gradients(plain), gradients(pooled))


def test_hooks_on_parameters_and_on_the_model_fire_once_per_step():
    _, pooled, batch = pair()
    seen: list[str] = []
    parameter = pooled.embedding.weight
    parameter.register_hook(lambda gradient: seen.append("gradient"))
    parameter.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    pooled.register_forward_hook(lambda module, args, output: seen.append("forward"))
    pooled(**batch)["loss"].backward()
    assert seen == ["forward", "gradient", "accumulated"]


def test_gradients_of_inputs():
    plain, pooled, _ = pair(zoo.Perceptron, lambda: {"x": torch.randn(6, 16, dtype=torch.float64)})
    values = torch.randn(6, 16, dtype=torch.float64)
    found = []
    for model in (plain, pooled):
        x = values.clone().requires_grad_()
        model(x * 2).pow(2).sum().backward()
        found.append(x.grad)
    assert_close(found[:1], found[1:])


def test_frozen_parameters_get_no_gradient():
    plain, pooled, batch = pair()
    for model in (plain, pooled):
        model.blocks[0].requires_grad_(False)
        model(**batch)["loss"].backward()
        assert all(p.grad is None for p in model.blocks[0].parameters())
    assert_close(gradients(plain), gradients(pooled))


def test_a_fully_frozen_model_is_inference():
    _, pooled, batch = pair()
    pooled.requires_grad_(False)
    assert not pooled(**batch)["loss"].requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_without_gradients(mode):
    plain, pooled, batch = pair()
    plain.eval()
    pooled.eval()
    with mode():
        expected, output = plain(**batch), pooled(**batch)
    assert not output["loss"].requires_grad
    assert_close([expected["logits"], expected["loss"]], [output["logits"], output["loss"]])
    assert output["logits"].is_inference() == (mode is torch.inference_mode)


def test_the_first_batch_may_come_in_inference_mode():
    torch.manual_seed(0)
    plain = zoo.Tied()
    pooled = poolrt.shard(copy.deepcopy(plain), topology=poolrt.virtual(cards=2, memory="64MiB"), micro_batches=3)
    batch = zoo._tied_batch()
    with torch.inference_mode():
        assert torch.allclose(pooled(**batch)["loss"], plain(**batch)["loss"])
    pooled(**batch)["loss"].backward()
    assert all(p.grad is not None for p in pooled.parameters())


def test_without_a_sample_the_first_batch_makes_the_plan():
    torch.manual_seed(0)
    plain = zoo.Tied().double()
    pooled = poolrt.shard(copy.deepcopy(plain), topology=poolrt.virtual(cards=2, memory="64MiB"), micro_batches=3)
    assert {p.device.type for p in pooled.parameters()} == {"vcard"}
    with pytest.raises(poolrt.PoolrtError, match="no batch"):
        poolrt.report(pooled)
    batch = zoo._tied_batch()
    for model in (plain, pooled):
        model(**batch)["loss"].backward()
    assert_close(gradients(plain), gradients(pooled))
    assert poolrt.report(pooled).plan.micro_batches == 3


def test_a_plan_made_beforehand_is_followed():
    torch.manual_seed(0)
    plain, batch = zoo.bert().double(), zoo._text_batch()
    topology = poolrt.virtual(cards=2, memory="64MiB")
    plan = poolrt.plan(plain, batch, topology, micro_batches=3)
    assert {p.device.type for p in plain.parameters()} == {"cpu"}, "planning moves nothing"
    pooled = poolrt.shard(copy.deepcopy(plain), topology=topology, plan=poolrt.Plan.from_json(plan.to_json()))
    for model in (plain, pooled):
        model(**batch).loss.backward()
    assert_close(gradients(plain), gradients(pooled))
    for card in plan.cards:
        for name in card.layers:
            devices = {p.device for p in pooled.get_submodule(name).parameters()}
            tied = {pooled.bert.embeddings.word_embeddings.weight.device}
            assert devices <= {torch.device("vcard", card.index)} | tied, name


def test_autocast_reaches_the_lanes():
    batch = zoo._tied_batch()
    pooled = poolrt.shard(zoo.Tied(), topology=poolrt.virtual(cards=2, memory="64MiB"), sample=batch, micro_batches=3)
    with torch.autocast("vcard", dtype=torch.bfloat16):
        assert pooled(**batch)["logits"].dtype == torch.bfloat16
    assert pooled(**batch)["logits"].dtype == torch.float32


class Checkpointed(zoo.Tied):
    """Recomputes its blocks in backward."""

    reentrant = False

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = hidden + checkpoint(block, hidden, use_reentrant=self.reentrant)
        logits = self.head(hidden)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class CheckpointedReentrant(Checkpointed):
    """The older form, which runs a backward inside backward."""

    reentrant = True


@pytest.mark.parametrize("make", [Checkpointed, CheckpointedReentrant])
def test_activation_checkpointing(make):
    plain, pooled, batch = pair(make)
    for model in (plain, pooled):
        model(**batch)["loss"].backward()
    assert_close(gradients(plain), gradients(pooled))


def test_a_batch_of_another_size_and_a_last_batch_of_one():
    plain, pooled, batch = pair()
    for size in (4, 1):
        part = {name: value[:size] for name, value in batch.items()}
        for model in (plain, pooled):
            model.zero_grad()
            model(**part)["loss"].backward()
        assert_close(gradients(plain), gradients(pooled))


def test_a_micro_batch_in_which_no_label_counts():
    plain, pooled, batch = pair()
    batch["labels"][2:4] = zoo.IGNORED  # the second of three micro-batches: its own loss is 0/0
    for model in (plain, pooled):
        loss = model(**batch)["loss"]
        assert torch.isfinite(loss)
        loss.backward()
    assert_close(gradients(plain), gradients(pooled))


def test_clipping_and_an_optimizer_made_before_sharding():
    torch.manual_seed(0)
    plain, batch = zoo.Tied().double(), zoo._tied_batch()
    pooled = copy.deepcopy(plain)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (plain, pooled)]
    poolrt.shard(pooled, topology=poolrt.virtual(cards=2, memory="64MiB"), sample=batch, micro_batches=3)
    for model, optimizer in zip((plain, pooled), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    for p, q in zip(plain.parameters(), pooled.parameters(), strict=True):
        assert torch.allclose(p, q.detach().cpu(), rtol=1e-9, atol=1e-10)


def test_the_signature_of_forward_stays():
    plain, pooled, _ = pair()
    assert inspect.signature(pooled.forward) == inspect.signature(plain.forward)


def test_state_dict_goes_in_and_out():
    plain, pooled, batch = pair()
    other = zoo.Tied().double()
    pooled.load_state_dict(other.state_dict())
    assert torch.allclose(pooled(**batch)["loss"], other(**batch)["loss"], rtol=1e-12)
    stream = io.BytesIO()
    torch.save(pooled.state_dict(), stream)
    stream.seek(0)
    plain.load_state_dict(torch.load(stream, map_location="cpu"))
    assert torch.equal(plain.head.weight, other.head.weight)
    assert plain.head.weight is plain.embedding.weight


def test_a_submodule_called_on_its_own():
    plain, pooled, _ = pair()
    hidden = torch.randn(2, 3, zoo.WIDTH, dtype=torch.float64)
    for ours, theirs in zip(pooled.blocks, plain.blocks, strict=True):
        assert torch.equal(ours(hidden).cpu(), theirs(hidden))


def test_to_another_dtype_works_and_to_one_device_is_refused():
    _, pooled, batch = pair()
    pooled.to(torch.float32)
    assert pooled(**batch)["logits"].dtype == torch.float32
    devices = [p.device for p in pooled.parameters()]
    with pytest.raises(poolrt.PoolrtError, match="spread over"):
        pooled.to("cpu")
    with pytest.warns(UserWarning, match="stays spread"):
        assert pooled.to("vcard:0") is pooled
    assert [p.device for p in pooled.parameters()] == devices


def test_a_deep_copy_is_pooled_on_the_same_cards_with_weights_of_its_own():
    plain, pooled, batch = pair()
    twin = copy.deepcopy(pooled)
    assert type(twin) is type(plain)
    assert [p.device for p in twin.parameters()] == [p.device for p in pooled.parameters()]
    assert all(p is not q for p, q in zip(twin.parameters(), pooled.parameters(), strict=True))
    assert torch.equal(twin(**batch)["loss"], pooled(**batch)["loss"])
    twin(**batch)["loss"].backward()
    plain(**batch)["loss"].backward()
    assert_close(gradients(plain), gradients(twin))
    assert all(p.grad is None for p in pooled.parameters())


def test_pickling_gives_an_ordinary_model_on_the_host():
    plain, pooled, batch = pair()
    again = pickle.loads(pickle.dumps(pooled))
    assert {p.device.type for p in again.parameters()} == {"cpu"}
    assert again.head.weight is again.embedding.weight
    assert torch.equal(again(**batch)["loss"], plain(**batch)["loss"])
    pooled(**batch)["loss"].backward()


class ChangesItsInput(nn.Module):
    """The second layer adds to its input in place, and the model reads that input again afterwards."""

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return self.linear(x)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), self.Adds()])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers[0](x) * 2
        return self.layers[1](hidden) * hidden + hidden


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_layer_that_changes_its_input_in_place_on_another_card(micro_batches: int):
    plain, pooled, batch = pair(
        ChangesItsInput, lambda: {"x": torch.randn(6, 8, dtype=torch.float64)}, micro_batches=micro_batches
    )
    assert len({p.device for p in pooled.parameters()}) == 2
    outputs = [model(**batch) for model in (plain, pooled)]
    assert_close(outputs[:1], outputs[1:])
    for output in outputs:
        output.pow(2).sum().backward()
    assert_close(gradients(plain), gradients(pooled))


@pytest.mark.usefixtures("one_thread")  # which puts it back
def test_the_callers_number_of_threads_is_left_alone():
    _, pooled, batch = pair()
    torch.set_num_threads(2)
    pooled(**batch)["loss"].backward()
    assert torch.get_num_threads() == 2
