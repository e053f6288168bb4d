"""A model on stages of several cards is used as any other: errors, checkpoints, autocast, copies, files, generation."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from runtime.test_hybrid import TWO_BY_TWO, assert_gradients_agree, assert_near, built, cards, hybrid, train
from torch import Tensor, nn

import poolrt
from poolrt.runtime.sharded.parameter import ShardedParameter

pytestmark = pytest.mark.usefixtures("one_thread")


def test_without_a_sample_the_first_batch_makes_the_stages():
    (reference, batch), (model, _) = built("bert"), built("bert")
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (reference, model)]
    poolrt.shard(model, topology=cards(4), tensor_parallel=2, micro_batches=3)
    assert {p.device.type for p in model.parameters()} == {"cpu"}, "what can be split is not known yet"
    for _ in range(2):
        for each, optimizer in zip((reference, model), optimizers, strict=True):
            optimizer.zero_grad()
            each(**batch).loss.backward()
            optimizer.step()
    assert_near(reference(**batch).loss, model(**batch).loss, 1e-9, "loss")
    assert poolrt.report(model).measured_step_s > 0


def test_gradients_accumulate_over_batches():
    (reference, batch), (model, _) = built("llama"), built("llama")
    hybrid(model, batch)
    for each in (reference, model):
        for scale in (1.0, 0.5):
            (each(**batch).loss * scale).backward()
        torch.nn.utils.clip_grad_norm_(each.parameters(), 0.1)
    assert_gradients_agree(reference, model, 1e-6)


def test_autograd_grad_and_hooks_see_one_gradient_a_step():
    (reference, batch), (model, _) = built("bert"), built("bert")
    hybrid(model, batch, micro_batches=3)
    parameter = next(p for p in model.parameters() if isinstance(p, ShardedParameter))
    seen: list[Tensor] = []
    parameter.register_hook(seen.append)
    model(**batch).loss.backward()
    assert len(seen) == 1
    expected, actual = (torch.autograd.grad(each(**batch).loss, list(each.parameters())) for each in (reference, model))
    for p, q in zip(expected, actual, strict=True):
        assert torch.allclose(p, q.cpu(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_autocast_reaches_every_card_of_a_stage(micro_batches: int):
    (reference, batch), (model, _) = built("bert", torch.float32), built("bert", torch.float32)
    hybrid(model, batch, micro_batches=micro_batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = reference(**batch)
    with torch.autocast("vcard", dtype=torch.bfloat16):
        actual = model(**batch)
    assert actual.logits.dtype == expected.logits.dtype == torch.bfloat16
    actual.loss.backward()
    assert torch.allclose(expected.loss, actual.loss, rtol=2e-2)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_checkpoints_give_the_gradients_without_them(name: str, reentrant: bool):
    (reference, batch), (model, _) = built(name), built(name)
    hybrid(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for each in (reference, model):
        each(**batch).loss.backward()
    assert_gradients_agree(reference, model, 1e-6)


class Fragile(nn.Module):
    """Two blocks, the second of which fails when told to, for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(8))
        self.fails_in = ""

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = x + block(x)
            if index == 5 and self.fails_in == "forward" and bool((x.detach() == 0).all()):
                raise ValueError("a sample of zeros")
            if index == 5 and self.fails_in == "backward" and x.requires_grad:
                x.register_hook(self._fail)
        return x.square().mean()

    def _fail(self, gradient: Tensor) -> Tensor:
        raise ValueError("in backward")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_in_one_lane_reaches_the_caller_and_the_next_step_works(where: str):
    torch.manual_seed(0)
    model, x = Fragile().double(), torch.randn(4, 16, dtype=torch.float64)
    reference = copy.deepcopy(model)
    poolrt.shard(model, topology=cards(4), sample=x, tensor_parallel=TWO_BY_TWO, micro_batches=2)
    assert poolrt.report(model).plan.micro_batches == 2
    model.fails_in = where
    bad = x.clone()
    bad[2:] = 0
    for block in model.blocks:
        nn.init.zeros_(block[0].bias), nn.init.zeros_(block[2].bias)
    for block in reference.blocks:
        nn.init.zeros_(block[0].bias), nn.init.zeros_(block[2].bias)
    with pytest.raises(ValueError, match="a sample of zeros" if where == "forward" else "in backward"):
        model(bad).backward()
    assert all(p.grad is None for p in model.parameters())
    model.fails_in = ""
    for each in (reference, model):
        each(x).backward()
    assert_gradients_agree(reference, model, 1e-12)


def test_memory_that_ends_in_a_step_leaves_everything_as_it_was():
    model, batch = built("bert", torch.float32)
    poolrt.shard(model, topology=cards(4, "2MiB"), sample=batch, tensor_parallel=2, micro_batches=2)
    model(**batch).loss.backward()
    before = [(p.detach().cpu(), p.grad.cpu()) for p in model.parameters()]
    held = [torch.vcard.memory_allocated(card) for card in range(4)]
    hog = torch.empty(torch.vcard.mem_get_info(3)[0] - 2**14, dtype=torch.uint8, device="vcard:3")
    with pytest.raises(poolrt.OutOfMemoryError, match="card 3") as caught:
        model(**batch).loss.backward()
    assert caught.value.card == 3
    assert caught.value.weights_nbytes > 0
    del hog, caught  # the error's frames hold what the step had made
    assert [torch.vcard.memory_allocated(card) for card in range(4)] == held
    for p, (value, gradient) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach().cpu(), value)
        assert torch.equal(p.grad.cpu(), gradient)
    model(**batch).loss.backward()


def test_an_optimizer_whose_state_finds_no_room_changes_nothing():
    model, batch = built("bert", torch.float32)
    poolrt.shard(model, topology=cards(4, "2MiB"), sample=batch, tensor_parallel=2, micro_batches=2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(**batch).loss.backward()
    before = [p.detach().cpu() for p in model.parameters()]
    hog = torch.empty(torch.vcard.mem_get_info(3)[0] - 2**14, dtype=torch.uint8, device="vcard:3")
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert all(torch.equal(p.detach().cpu(), value) for p, value in zip(model.parameters(), before, strict=True))
    assert not any(optimizer.state.values())
    del hog
    optimizer.step()


# ---- copies and files


def test_copies_are_on_the_same_stages_and_pickles_are_whole():
    model, batch = built("llama")
    expected = model(**batch).loss.detach()
    hybrid(model, batch)
    twin = copy.deepcopy(model)
    assert poolrt.report(twin).plan == poolrt.report(model).plan
    train(twin, batch, steps=1)
    assert_near(expected, model(**batch).loss, 1e-6, "loss of the original")
    assert not torch.allclose(twin(**batch).loss, expected, rtol=1e-4), "weights of its own"
    plain = pickle.loads(pickle.dumps(model))
    assert all(type(p) is nn.Parameter and p.device.type == "cpu" for p in plain.parameters())
    assert torch.equal(plain(**batch).loss, expected)


def test_state_goes_both_ways(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that watches the progress bar
    model, batch = built("gpt2")
    expected = model(**batch).loss.detach()
    hybrid(model, batch)
    model.save_pretrained(tmp_path / "model")
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    train(model, batch, steps=1)
    model.load_state_dict(state)
    assert_near(expected, model(**batch).loss, 1e-6, "loss after loading")
    fresh = type(model).from_pretrained(tmp_path / "model", dtype=torch.float64).train()
    assert_near(expected, fresh(**batch).loss, 1e-12, "loss of the saved model")


def test_a_plan_made_before_is_followed_and_survives_json():
    model, batch = built("bert")
    topology = cards(4)
    plan = poolrt.plan(model, batch, topology, tensor_parallel=[[0, 1], [2, 3]], micro_batches=2)
    assert {p.device.type for p in model.parameters()} == {"cpu"}, "a plan moves nothing"
    read = poolrt.planning.plan.Plan.from_json(plan.to_json())
    assert read == plan
    poolrt.shard(model, topology=topology, sample=batch, plan=read)
    assert poolrt.report(model).plan == plan


def test_another_dtype_has_the_pieces_follow():
    model, batch = built("llama")
    hybrid(model, batch)
    model.float()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_near(built("llama", torch.float32)[0](**batch).loss, model(**batch).loss, 1e-5, "loss")
    with pytest.raises(poolrt.errors.ModelError, match="cannot be moved"):
        model.to("cpu")


def test_verify_compares_every_output_and_gradient():
    _, batch = built("bert")
    found = poolrt.verify(
        lambda: built("bert")[0], batch, topology=cards(4), tensor_parallel=TWO_BY_TWO, micro_batches=2
    )
    assert found.ok, str(found)
    assert found.plan.stages == ((0, 1), (2, 3))


# ---- generation


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("stages", [TWO_BY_TWO, [[0], [1, 2]]], ids=str)
def test_generation_gives_the_tokens_of_one_card(stages: Any, options: dict[str, Any]):
    (reference, batch), (model, _) = built("llama"), built("llama")
    hybrid(model, batch, stages)
    prompt = batch["input_ids"][:2, :5]
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    expected = reference.eval().generate(prompt, **told)
    assert torch.equal(model.eval().generate(prompt, **told).cpu(), expected)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_returned_cache_is_read_whole_and_handed_back(micro_batches: int):
    (reference, batch), (model, _) = built("llama"), built("llama")
    hybrid(model, batch, micro_batches=micro_batches)
    ids, last = batch["input_ids"], []
    with torch.no_grad():
        caches = [each(input_ids=ids, use_cache=True).past_key_values for each in (reference, model)]
        for expected, actual in zip(caches[0].layers, caches[1].layers, strict=True):
            assert_near(expected.keys, actual.keys, 1e-6, "keys")
            assert_near(expected.values, actual.values, 1e-6, "values")
        for each, cache in zip((reference, model), caches, strict=True):
            last.append(each(input_ids=ids[:, :1], past_key_values=cache).logits)
    assert_near(*last, 1e-6, "logits")
    assert caches[0].get_seq_length() == caches[1].get_seq_length()
