"""Every family split over 2, 3 and 4 cards by `poolrt.shard`, against the same model on one: what training sees of it.

                        2 cards    3 cards    4 cards
    bert                   x          x          x        x: outputs, every gradient, parameters after three steps of
    gpt2                   x          x          x           AdamW, and the model's own loss with its gradients
    ...

fp64 agrees to 1e-12; models that compute a part in fp32 whatever their dtype, and all losses over logits, to 1e-6.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runtime.regions.specimens import SPECIMENS
from torch import Tensor, nn

import poolrt
from poolrt.runtime.state.trees import flatten

pytestmark = pytest.mark.usefixtures("one_thread")

UPCAST = 1e-6
"""relative to the largest value: what fp32 in between explains"""


def objective(outputs: Any) -> Tensor:
    """The model's own loss, or one of logits in their own precision."""
    loss = outputs.get("loss")
    return outputs["logits"].square().mean() if loss is None else loss


def assert_near(expected: Tensor, actual: Tensor, tolerance: float, what: str, scale: float | None = None) -> None:
    assert expected.shape == actual.shape, what
    largest = expected.abs().max().item() if scale is None else scale
    difference = (expected - actual.detach().cpu()).abs().max().item()
    assert difference <= tolerance * largest, f"{what}: {difference / largest:.3g}"


def assert_same_outputs(expected: Any, actual: Any, tolerance: float) -> None:
    ours, theirs = flatten(expected), flatten(actual)
    assert [leaf.path for leaf in ours.leaves] == [leaf.path for leaf in theirs.leaves]
    for mine, their in zip(ours.leaves, theirs.leaves, strict=True):
        assert_near(mine.tensor, their.tensor, tolerance, mine.path)


def assert_same_gradients(reference: nn.Module, model: nn.Module, tolerance: float) -> None:
    scale = scale_of(reference)
    for (name, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert_near(p.grad, q.grad, tolerance, name, scale)


def assert_same_steps(reference: nn.Module, model: nn.Module, batch: dict[str, Any], tolerance: float) -> None:
    """Outputs and gradients in the first of three steps of AdamW, parameters after them."""
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (reference, model)]
    for step in range(3):
        outputs = [each(**batch) for each in (reference, model)]
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            objective(output).backward()
        if step == 0:
            assert_same_outputs(*outputs, tolerance)
            assert_same_gradients(reference, model, tolerance)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_parameters(reference, model, tolerance)


def assert_same_parameters(reference: nn.Module, model: nn.Module, tolerance: float) -> None:
    """But for entries whose gradient is nothing but rounding (the bias of keys): Adam divides by its size."""
    scale, compared = scale_of(reference), 0
    for (name, p), q in zip(reference.named_parameters(), model.parameters(), strict=True):
        solid = torch.zeros_like(p, dtype=torch.bool) if p.grad is None else p.grad.abs() > tolerance * scale
        compared += int(solid.sum())
        assert torch.allclose(p[solid], q.detach().cpu()[solid], rtol=0, atol=tolerance), name
    assert compared > 0.8 * sum(p.numel() for p in reference.parameters())


def scale_of(model: nn.Module) -> float:
    """The largest entry of any gradient."""
    return max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("cards", [2, 3, 4])
@pytest.mark.parametrize("name", SPECIMENS)
def test_training_split_is_training_on_one_card(name: str, cards: int):
    specimen = SPECIMENS[name]
    (reference, batch), (model, _) = specimen.build(), specimen.build()
    over_logits = {"input_ids", "use_cache"} <= batch.keys()
    exact = {key: value for key, value in batch.items() if key != "labels" or not over_logits}
    topology = poolrt.virtual(cards=cards, memory="64MiB")
    assert poolrt.shard(model, topology=topology, sample=exact, tensor_parallel=cards) is model
    assert_same_steps(reference, model, exact, specimen.tolerance)
    if over_logits:
        reference.zero_grad(), model.zero_grad()
        losses = [each(**batch).loss for each in (reference, model)]
        assert_near(*losses, UPCAST, "loss")
        [loss.backward() for loss in losses]
        assert_same_gradients(reference, model, UPCAST)


# ---- generation

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama-1", "qwen2", "gpt-neox", "t5"])
def test_generation_split_is_generation_on_one_card(name: str, way: str):
    """Tokens, and the keys and values that come back: whole, whatever card keeps them."""
    specimen = SPECIMENS[name]
    (reference, batch), (model, _) = specimen.build(), specimen.build()
    poolrt.shard(model, topology=poolrt.virtual(cards=3, memory="64MiB"), sample=batch, tensor_parallel=3)
    prompt = batch["input_ids"][:, :3]
    found = []
    for each in (reference.eval(), model.eval()):
        torch.manual_seed(5)
        told = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
        found.append(each.generate(prompt, attention_mask=torch.ones_like(prompt), **told, **WAYS[way]))
    expected, actual = found
    assert torch.equal(expected.sequences, actual.sequences.cpu())
    caches = [getattr(each.past_key_values, "self_attention_cache", each.past_key_values) for each in found]
    for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert_near(mine.keys, theirs.keys, UPCAST, "keys")
        assert_near(mine.values, theirs.values, UPCAST, "values")
