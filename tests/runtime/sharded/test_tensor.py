"""Every operator on a sharded tensor gives what it gives on an ordinary one, and what it writes is in the pieces."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from poolrt.errors import ModelError
from poolrt.planning.split import Split
from poolrt.runtime.sharded.sharding import Sharding
from poolrt.runtime.sharded.tensor import Sharded, ShardedTensor, nbytes_by_device
from poolrt.runtime.sharded.view import ShardedView

Devices = tuple[torch.device, ...]
Pair = Callable[..., tuple[ShardedTensor, Tensor]]

ROWS = Split(dim=0, pieces=(((0, 2), (4, 5)), ((2, 4), (5, 6))))
COLUMNS = Split.from_counts((1, 3), dim=1)
SHARED = Split(dim=0, pieces=(((0, 4),), ((2, 6),)), replicated=((2, 4),))
SPLITS = {"rows": ROWS, "columns": COLUMNS, "some on both cards": SHARED}


@pytest.fixture
def pair(devices: Devices) -> Pair:
    """Makes a sharded tensor and an ordinary one with the same values, 6 x 4 and positive."""

    def make(split: Split = ROWS, dtype: torch.dtype = torch.float64) -> tuple[ShardedTensor, Tensor]:
        ordinary = (torch.rand(6, 4, dtype=torch.float64) + 0.5).to(dtype).to(devices[0])
        sharding = Sharding((6, 4), split, devices[:2])
        return ShardedTensor(sharding.scatter(ordinary), sharding), ordinary

    return make


def assert_consistent(sharded: ShardedTensor) -> None:
    """What several cards hold is the same on all of them."""
    for card, piece in enumerate(sharded.pieces):
        assert torch.equal(piece.cpu(), sharded.sharding.cut(sharded.cpu(), card))


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda t: t + 1,
    "add itself": lambda t: t + t,
    "row": lambda t: t * t.detach()[0],
    "column": lambda t: t / t.detach()[:, :1],
    "plain whole": lambda t: t - torch.ones_like(t).cpu().to(t.device),
    "number on the card": lambda t: t * torch.tensor(3.0, dtype=t.dtype, device=t.device),
    "number on the host": lambda t: t * torch.tensor(3.0, dtype=t.dtype),
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "compare": lambda t: t > 1,
    "where": lambda t: torch.where(t > 1, t, torch.zeros_like(t)),
    "clamp": lambda t: t.clamp(0.7, 1.2),
    "lerp": lambda t: torch.lerp(t, t + 1, 0.25),
    "addcdiv": lambda t: torch.addcdiv(t, t, t + 1, value=0.5),
    "to float": lambda t: t.to(torch.float32),
    "half": lambda t: t.half(),
    "clone": torch.clone,
    "contiguous": lambda t: t.contiguous(),
    "isfinite": torch.isfinite,
    "masked_fill": lambda t: t.masked_fill(t > 1, 0.0),
    "zeros_like": torch.zeros_like,
    "full_like": lambda t: torch.full_like(t, 2.0),
    "pow": lambda t: t**3,
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_element_by_element_it_stays_in_pieces_with_the_same_bits(name: str, split: Split, pair: Pair) -> None:
    sharded, ordinary = pair(split)
    found, expected = ELEMENTWISE[name](sharded), ELEMENTWISE[name](ordinary)
    assert isinstance(found, ShardedTensor)
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected.cpu())
    assert_consistent(found)


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "sum of all dims": lambda t: t.sum(dim=(0, 1)),
    "sum as float": lambda t: t.sum(dtype=torch.float32),
    "mean": torch.mean,
    "max": torch.max,
    "amin": torch.amin,
    "all": lambda t: (t > 0).all(),
    "any": lambda t: (t > 100).any(),
    "count": lambda t: (t > 1).sum(),
    "norm": torch.norm,
    "norm 1": lambda t: torch.linalg.vector_norm(t, 1),
    "norm inf": lambda t: torch.linalg.vector_norm(t, float("inf")),
    "norm 0": lambda t: torch.linalg.vector_norm(t, 0),
    "norm 3": lambda t: t.norm(3),
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NUMBERS)
def test_one_number_of_all_elements(name: str, dtype: torch.dtype, split: Split, pair: Pair) -> None:
    sharded, ordinary = pair(split, dtype)
    found, expected = NUMBERS[name](sharded), NUMBERS[name](ordinary)
    assert not isinstance(found, Sharded)
    assert found.device == expected.device
    relative = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3}.get(expected.dtype, 0)
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=relative, atol=0)


def test_reductions_take_no_memory_of_the_whole(devices: Devices) -> None:
    sharding = Sharding((1024, 1024), Split.from_shares(1024, [1, 1]), devices[:2])
    sharded = ShardedTensor(sharding.scatter(torch.ones(1024, 1024)), sharding)  # 2 MiB each
    before = torch.vcard.memory_allocated(0)
    torch.vcard.reset_peak_memory_stats(0)
    assert (sharded.sum().item(), sharded.max().item()) == (1024.0**2, 1.0)
    assert sharded.norm().item() == pytest.approx(1024.0)
    assert torch.vcard.max_memory_allocated(0) - before <= 1 << 16


WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "matmul": lambda t: t @ t.t(),
    "sum along the split": lambda t: t.sum(0),
    "mean along the other": lambda t: t.mean(1, keepdim=True),
    "softmax": lambda t: t.softmax(0),
    "broadcast to more": lambda t: t + torch.ones(2, 6, 4, dtype=t.dtype, device=t.device),
    "rows": lambda t: t[torch.tensor([5, 0, 0])],
    "mask": lambda t: t[t > 1],
    "cat": lambda t: torch.cat([t, t]),
    "stack of views": lambda t: torch.stack(list(t.unbind(0))),
    "flatten and sort": lambda t: t.flatten().sort().values,
    "max along": lambda t: t.max(dim=0).values,
    "embedding": lambda t: torch.nn.functional.embedding(torch.tensor([1, 5], device=t.device), t),
    "item": lambda t: torch.tensor(t[2, 1].item()),
    "cumsum": lambda t: t.cumsum(0),
    "einsum": lambda t: torch.einsum("ij,kj->ik", t, t),
    "new": lambda t: t.new_ones(3),
    "other": lambda t: t.new_tensor([1.0, 2.0]),
    "on the host": lambda t: t.cpu(),
    "on another card": lambda t: t.to("vcard:1"),
    "host and type": lambda t: t.to("cpu", torch.float16),
    "zeros on the host": lambda t: torch.zeros_like(t, device="cpu"),
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_the_whole_gets_it(name: str, split: Split, pair: Pair) -> None:
    sharded, ordinary = pair(split)
    found, expected = WHOLE[name](sharded), WHOLE[name](ordinary)
    assert not isinstance(found, Sharded)
    assert (found.device, found.dtype) == (expected.device, expected.dtype)
    assert torch.equal(found.cpu(), expected.cpu())


WRITING: dict[str, Callable[[Tensor], object]] = {
    "mul_": lambda t: t.mul_(0.9),
    "augmented": lambda t: t.__iadd__(2),
    "element": lambda t: t.__setitem__((3, 1), 5.0),
    "row": lambda t: t.__setitem__(3, 0.0),
    "slice": lambda t: t.__setitem__((slice(1, 5), slice(None, 2)), -1.0),
    "mask": lambda t: t.__setitem__(t > 1, 0.0),
    "rows by index": lambda t: t.__setitem__(torch.tensor([0, 5], device=t.device), 3.0),
    "view": lambda t: t.view(-1)[7:9].fill_(8.0),
    "transposed": lambda t: t.t()[0].mul_(3.0),
    "view of data": lambda t: t.data[2].zero_(),
    "part of a part": lambda t: t[1:][1:][0].neg_(),
    "chunks": lambda t: [part.mul_(2.0) for part in t.chunk(2, dim=1)],
    "rows one by one": lambda t: [row.add_(i) for i, row in enumerate(t)],
    "one row to another": lambda t: t[0].copy_(t[5]),
    "copy from the host": lambda t: t.copy_(torch.full((6, 4), 4.0)),
    "copy a row": lambda t: t.copy_(torch.arange(4.0, device=t.device)),
    "copy of another type": lambda t: t.copy_(torch.ones(6, 4, dtype=torch.int64, device=t.device)),
    "copy of itself": lambda t: t.copy_(2 * t),
    "zero_": lambda t: t.zero_(),
    "out": lambda t: torch.add(t.cpu().to(t.device), 1, out=t),
    "index_add_": lambda t: t.index_add_(0, torch.tensor([1, 1], device=t.device), t.cpu()[:2].to(t.device)),
    "addmm_": lambda t: t.addmm_(t.cpu().to(t.device)[:, :1], t.cpu().to(t.device)[:1]),
    "clamp_": lambda t: t.clamp_(min=1.0),
    "normal_": lambda t: t.normal_(),
    "uniform_": lambda t: torch.nn.init.uniform_(t),
    "kaiming": torch.nn.init.kaiming_uniform_,
    "orthogonal": torch.nn.init.orthogonal_,
    "xavier": torch.nn.init.xavier_normal_,
    "trunc_normal": torch.nn.init.trunc_normal_,
    "copy to a plain one": lambda t: torch.empty(6, 4, dtype=t.dtype).copy_(t),
    "renorm": lambda t: t.renorm_(2, 0, 1.0),
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("name", WRITING)
def test_what_is_written_is_in_the_pieces(name: str, split: Split, pair: Pair) -> None:
    sharded, ordinary = pair(split)
    pieces = sharded.pieces
    for tensor in (sharded, ordinary):
        torch.manual_seed(3)
        WRITING[name](tensor)
    assert torch.equal(sharded.cpu(), ordinary.cpu())
    assert all(new is old for new, old in zip(sharded.pieces, pieces, strict=True))
    assert_consistent(sharded)


def test_aliases_and_views_are_names_of_the_same_values(pair: Pair) -> None:
    sharded, ordinary = pair()
    name, row = sharded.detach(), sharded[4]
    assert isinstance(row, ShardedView)
    name.zero_()
    assert row.sum().item() == 0.0
    row.fill_(2.0)
    assert sharded.sum().item() == 8.0
    assert (row.data_ptr() - name.data_ptr()) == 4 * 4 * 8
    assert row.storage_offset() == ordinary[4].storage_offset()


def test_versions_count_what_is_written(pair: Pair) -> None:
    sharded, _ = pair()
    writes: list[Callable[[], object]] = [
        lambda: sharded.mul_(2),
        lambda: sharded[0].zero_(),
        lambda: sharded.copy_(torch.ones(6, 4)),
        lambda: torch._foreach_mul_([sharded], 2.0),
    ]
    for write in writes:
        before = [piece._version for piece in sharded.pieces]
        write()
        assert all(piece._version > was for piece, was in zip(sharded.pieces, before, strict=True))


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_lists_of_sharded_and_plain_tensors(split: Split, pair: Pair) -> None:
    sharded, ordinary = pair(split)
    other, plain_other = pair(COLUMNS)
    extra = torch.ones(5, dtype=torch.float64, device=ordinary.device)
    found = torch._foreach_add([sharded, extra, other, sharded], [1.0, 2.0, 3.0, 4.0])
    expected = torch._foreach_add([ordinary, extra, plain_other, ordinary], [1.0, 2.0, 3.0, 4.0])
    assert [isinstance(value, ShardedTensor) for value in found] == [True, False, True, True]
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(found, expected, strict=True))
    for order in (1, 2, float("inf")):
        norms = zip(*(torch._foreach_norm([tensor, extra], order) for tensor in (sharded, ordinary)), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-14) for a, b in norms)
    torch._foreach_lerp_([sharded, other], [plain_other, sharded.clone()], 0.25)
    torch._foreach_lerp_([ordinary, plain_other], [plain_other.clone(), ordinary.clone()], 0.25)
    assert torch.equal(sharded.cpu(), ordinary.cpu())
    assert torch.equal(other.cpu(), plain_other.cpu())
    torch._foreach_addcdiv_([extra, sharded], [extra, sharded], [extra, sharded], [1.0, 2.0])
    torch._foreach_addcdiv_([ordinary], [ordinary], [ordinary], [2.0])
    assert torch.equal(sharded.cpu(), ordinary.cpu())
    assert extra.tolist() == [2.0] * 5
    torch._foreach_copy_([sharded, extra], [ordinary + 1, 0 * extra])
    assert torch.equal(sharded.cpu(), ordinary.cpu() + 1)
    assert_consistent(sharded)


def test_to_python_and_numpy(pair: Pair) -> None:
    sharded, ordinary = pair()
    assert sharded.tolist() == ordinary.tolist()
    assert (sharded.numpy(force=True) == ordinary.cpu().numpy()).all()
    with pytest.raises(TypeError, match=r"\.cpu\(\)\.numpy\(\)"):
        sharded.numpy()
    assert f"{sharded[2, 1].item():.6f}" == f"{ordinary[2, 1].item():.6f}"
    assert sharded[0, 0].item() in sharded
    assert len(sharded) == 6
    assert "vcard:0, vcard:1" in repr(sharded)
    assert f"{ordinary[0, 0].item():.4f}" in repr(sharded)
    assert f"{sharded[0, 0]:.3f}" == f"{ordinary[0, 0].item():.3f}"


def test_no_library_gets_an_address(pair: Pair) -> None:
    sharded, _ = pair()
    for tensor in (sharded, sharded.detach(), sharded[0]):
        with pytest.raises(BufferError, match="vcard:0, vcard:1"):
            tensor.__dlpack__()
        with pytest.raises(RuntimeError, match="data pointer"):
            torch.utils.dlpack.to_dlpack(tensor)


def test_a_view_is_copied_with_what_it_views(pair: Pair) -> None:
    sharded, ordinary = pair()
    row, whole = copy.deepcopy((sharded[2], sharded))
    row.zero_()
    assert whole[2].sum().item() == 0.0
    assert torch.equal(sharded.cpu(), ordinary.cpu())
    assert torch.equal(pickle.loads(pickle.dumps(sharded[2])), ordinary[2].cpu())


def test_bytes_by_device(pair: Pair) -> None:
    sharded, ordinary = pair(COLUMNS)
    first, second = sharded.sharding.devices
    assert nbytes_by_device(sharded) == {first: 6 * 8, second: 6 * 3 * 8}
    assert nbytes_by_device(ordinary) == {first: 6 * 4 * 8}


def test_function_transforms(pair: Pair) -> None:
    sharded, ordinary = pair()
    batch = torch.ones(3, 4, dtype=torch.float64, device=ordinary.device)
    found, expected = (torch.vmap(lambda x, t=t: t @ x)(batch) for t in (sharded, ordinary))
    assert torch.equal(found, expected)
    found, expected = (torch.func.grad(lambda t: (t**2).sum())(tensor) for tensor in (sharded, ordinary))
    assert torch.equal(found.cpu(), expected.cpu())


REFUSED: dict[str, Callable[[Tensor], object]] = {
    "t_": lambda t: t.t_(),
    "resize_": lambda t: t.resize_(2, 2),
    "set_": lambda t: t.set_(torch.ones(3, dtype=t.dtype, device=t.device)),
    "squeeze_": lambda t: t.unsqueeze_(0),
    "data of another shape": lambda t: setattr(t, "data", torch.ones(2, dtype=t.dtype, device=t.device)),
    "data elsewhere": lambda t: setattr(t, "data", torch.ones(6, 4, dtype=t.dtype)),
    "address": lambda t: t.data_ptr(),
    "storage": lambda t: t.untyped_storage(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_take_it_apart_is_refused(name: str, pair: Pair) -> None:
    sharded, ordinary = pair()
    with pytest.raises(ModelError, match="vcard:0, vcard:1"):
        REFUSED[name](sharded)
    assert torch.equal(sharded.cpu(), ordinary.cpu())


@pytest.mark.parametrize("mix", [lambda t: t + torch.ones(6, 4), lambda t: t.add_(torch.ones(6, 4).to("vcard:1"))])
def test_tensors_of_other_devices_are_not_mixed_in(mix: Callable[[Tensor], Tensor], pair: Pair) -> None:
    for tensor in pair():
        with pytest.raises(RuntimeError, match="same device"):
            mix(tensor)


def test_in_inference_mode(pair: Pair) -> None:
    sharded, ordinary = pair()
    with torch.inference_mode():
        inside, _ = pair()
        inside.mul_(2)
        assert torch.equal((sharded @ sharded.t()).cpu(), (ordinary @ ordinary.t()).cpu())
        sharded.mul_(2)
    assert torch.equal(sharded.cpu(), 2 * ordinary.cpu())
