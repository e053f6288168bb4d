"""What every body of the kernels must do. A class of tests; a body joins with one fixture.

    class TestMyBody(Conformance):
        @pytest.fixture
        def body(self) -> Body: ...

torch on the CPU is the oracle for numbers (NumPy has no bfloat16), NumPy for bytes. The whole target buffer is
compared, so that nothing is written beside it. Which NaN a NaN becomes is left to the hardware.
"""

import warnings
from dataclasses import replace
from itertools import product

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer.kernels.worker import SOURCE_BASE, TARGET_BASE

from poolrt.errors import ConfigurationError
from poolrt.transfer.kernels.dtypes import NAMES, WORDS, common_type
from poolrt.transfer.kernels.launch import CHUNK_NBYTES, plan_add, plan_copy, plan_many
from poolrt.transfer.layout import Layout

RELAXED = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
}
COUNT = 37
"""no multiple of any pack"""


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)


def numbers(name: str, target: str) -> torch.Tensor:
    """COUNT numbers of a type, with all that is special about it, that the target type has a value for."""
    dtype = dtype_of(name)
    random = torch.Generator().manual_seed(7)
    if name == "bool":
        return torch.rand(COUNT, generator=random) < 0.5
    if name.startswith("complex"):
        part = torch.float32 if name == "complex64" else torch.float64
        return torch.complex(numbers_of_floats(part, target), numbers_of_floats(part, target).flip(0))
    if dtype.is_floating_point:
        return numbers_of_floats(dtype, target)
    limits = torch.iinfo(dtype)
    whole = torch.randint(max(limits.min, -1 << 40), min(limits.max, 1 << 40), (COUNT - 6,), generator=random)
    ends = torch.tensor([limits.min, limits.min + 1, 0, 1, limits.max - 1, limits.max])
    return torch.cat([whole, ends]).to(dtype)


def numbers_of_floats(dtype: torch.dtype, target: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(8)
    if target.startswith(("int", "uint")):
        low, high = (-100, 100) if target != "uint8" else (-3, 250)  # beyond the range nothing is defined
        return (torch.rand(COUNT, generator=random) * (high - low) + low).to(dtype)
    inf, nan = float("inf"), float("nan")
    special = [0.0, -0.0, inf, -inf, nan, 65504.0, 65519.99, 65520.0, -1e6, 3.4e38, -3e-45, 2.0**-24, 2.0**-25]
    special += [1.5 * 2.0**-25, 2.0**-14, 2.0**-14 - 2.0**-25, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1e-300]
    ordinary = torch.randn(COUNT - len(special), generator=random, dtype=torch.float64)
    return torch.cat([torch.tensor(special, dtype=torch.float64), ordinary]).to(dtype)


def layout(tensor: torch.Tensor, base: int) -> Layout:
    nbytes = tensor.element_size()
    address = base + tensor.storage_offset() * nbytes
    return Layout(address=address, item_nbytes=nbytes, shape=tuple(tensor.shape), strides=tensor.stride())


def contents(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.untyped_storage())


def from_contents(data: bytes, like: torch.Tensor) -> torch.Tensor:
    whole = torch.frombuffer(bytearray(data), dtype=like.dtype) if data else torch.empty(0, dtype=like.dtype)
    return whole.as_strided(like.shape, like.stride(), like.storage_offset())


def copied(body, target: torch.Tensor, source: torch.Tensor, plan=plan_copy, wide: bool = False) -> torch.Tensor:
    """What the target's whole storage holds after the launches of a plan."""
    types = [str(tensor.dtype).removeprefix("torch.") for tensor in (target, source)]
    sides = (layout(target, TARGET_BASE), types[0], layout(source, SOURCE_BASE), types[1])
    data = contents(target)
    for launch in plan(*sides, body.lanes):
        data = body.run(replace(launch, wide=True, items=1) if wide else launch, data, contents(source))
    return from_contents(data, flat(target))


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """All that the tensor's storage holds."""
    return tensor.as_strided((len(contents(tensor)) // tensor.element_size(),), (1,), 0)


def assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    if expected.is_complex():
        found, expected = torch.view_as_real(found), torch.view_as_real(expected)
    if expected.is_floating_point():
        assert torch.equal(found.isnan(), expected.isnan())
        found, expected = found.nan_to_num(0.25), expected.nan_to_num(0.25)
    found, expected = found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)
    assert torch.equal(found, expected), f"first difference at byte {(found != expected).nonzero()[0].tolist()}"


def expected_copy(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    before = flat(target).clone()
    after = before.as_strided(target.shape, target.stride(), target.storage_offset())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells once that imaginary parts go
        after.copy_(source)
    return before


@st.composite
def strided_pairs(draw, names):
    """Two views of one shape: permuted, stepped over, cut from a larger tensor; a source may repeat elements."""
    shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=8).filter(lambda s: numpy.prod(s, dtype=int) <= 160))
    if draw(st.integers(0, 9)) == 0:
        shape = [*shape[:7], 0]
    pair = []
    for role in ("target", "source"):
        order = draw(st.permutations(range(len(shape))))
        gaps = [draw(st.sampled_from([0, 0, 0, 1, 3])) for _ in shape]
        repeated = [role == "source" and draw(st.integers(0, 5)) == 0 for _ in shape]
        strides, step = [0] * len(shape), draw(st.sampled_from([1, 1, 1, 2]))
        for dimension in order:
            strides[dimension] = 0 if repeated[dimension] else step
            step *= 1 if repeated[dimension] else max(shape[dimension], 1) + gaps[dimension]
        offset = draw(st.sampled_from([0, 0, 1, 2, 4, 5]))
        dtype = dtype_of(draw(st.sampled_from(names)))
        room = torch.arange(offset + step + 3).remainder(100).to(dtype)
        pair.append((-room if role == "target" and dtype.is_signed else room).as_strided(shape, strides, offset))
    return tuple(pair)


def partners(body, target: str) -> list[str]:
    """The source types that this target type meets; over all targets, each type is as often a source."""
    first = NAMES.index(target)
    return [NAMES[(first + 5 * turn) % len(NAMES)] for turn in range(body.partners)]


class Conformance:
    """Tests of a body, which the fixture `body` gives."""

    @pytest.mark.parametrize("target", NAMES)
    def test_every_type_is_converted_as_torch_does(self, body, target):
        for source in partners(body, target):
            given = numbers(source, target)
            into = torch.ones(COUNT).to(dtype_of(target))
            assert_same_bits(copied(body, into, given), expected_copy(into, given))

    @pytest.mark.parametrize("target", NAMES)
    def test_every_sum_is_torchs(self, body, target):
        for source in partners(body, target):
            try:
                common_type(target, source)
            except ConfigurationError:
                continue
            given, into = numbers(source, target), numbers(target, target).flip(0)
            if into.is_complex():  # torch multiplies by one first, which makes NaN of a complex infinity
                given, into = (tensor.masked_fill(~tensor.isfinite(), 3) for tensor in (given, into))
            assert_same_bits(copied(body, into, given, plan_add), into.clone().add_(given))

    @pytest.mark.parametrize("half", ["float16", "bfloat16"])
    def test_every_half_becomes_a_float_and_every_tie_is_rounded_to_even(self, body, half):
        dtype = dtype_of(half)
        step = 1 if body.examples > 100 else 61
        halves = torch.arange(0, 65536, step, dtype=torch.int32).to(torch.int16).view(dtype)
        assert_same_bits(copied(body, torch.zeros(len(halves)), halves), halves.float())
        bits = halves[::7].float().nan_to_num(1.0).view(torch.int32)
        half_a_step = 1 << (12 if half == "float16" else 15)
        between = torch.cat([bits + half_a_step + off for off in (-1, 0, 1)]).view(torch.float32)
        assert_same_bits(copied(body, torch.zeros(len(between), dtype=dtype), between), between.to(dtype))

    def test_strided_copies_of_any_shape(self, body):
        @settings(max_examples=body.examples, **RELAXED)
        @given(strided_pairs(NAMES if body.partners == len(NAMES) else ["float32", "bfloat16"]))
        def check(pair):
            target, source = pair
            if source.is_complex() and not target.is_complex():
                source = source.real.contiguous()
            assert_same_bits(copied(body, target, source), expected_copy(target, source))

        check()

    def test_strided_copies_within_one_type_move_the_widest_words_that_fit(self, body):
        @settings(max_examples=body.examples, **RELAXED)
        @given(st.sampled_from(NAMES).flatmap(lambda name: strided_pairs([name])))
        def check(pair):
            assert_same_bits(copied(body, *pair), expected_copy(*pair))

        check()

    def test_strided_sums_of_any_shape(self, body):
        @settings(max_examples=body.examples, **RELAXED)
        @given(st.sampled_from(["float32", "bfloat16", "int8"]).flatmap(lambda name: strided_pairs([name])))
        def check(pair):
            target, source = pair
            expected = flat(target).clone()
            expected.as_strided(target.shape, target.stride(), target.storage_offset()).add_(source)
            assert_same_bits(copied(body, target, source, plan_add), expected)

        check()

    def test_steps_backwards(self, body):
        """NumPy's negative strides, which torch does not have: any of two dimensions of either side turned round."""
        data = numpy.arange(24, dtype=numpy.int32)
        for turns in product((1, -1), repeat=4):
            into, given = numpy.zeros(24, numpy.int32), data.copy()
            target = into.reshape(4, 6)[:: turns[0], :: turns[1]]
            source = given.reshape(4, 6)[:: turns[2], :: turns[3]]
            sides = [
                Layout(
                    address=base + view.ctypes.data - whole.ctypes.data,
                    item_nbytes=4,
                    shape=view.shape,
                    strides=tuple(stride // 4 for stride in view.strides),
                )
                for view, whole, base in ((target, into, TARGET_BASE), (source, given, SOURCE_BASE))
            ]
            (launch,) = plan_copy(sides[0], "int32", sides[1], "int32", body.lanes)
            found = numpy.frombuffer(body.run(launch, into.tobytes(), given.tobytes()), numpy.int32)
            target[:] = source
            assert numpy.array_equal(found, into)

    def test_positions_of_64_bits(self, body):
        source = torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2)
        for dtype in (torch.float32, torch.float64):
            target = torch.zeros(4, 3, 2, dtype=dtype)
            assert_same_bits(copied(body, target, source, wide=True), expected_copy(target, source))

    def test_words_of_every_size(self, body):
        for nbytes in WORDS:
            count = 3 * 5 * 16 // nbytes
            source = torch.arange(2 * 3 * 5 * 16).remainder(251).to(torch.uint8)
            shape, strides = (3, count // 3 * nbytes), (2 * count // 3 * nbytes, 1)
            target = torch.zeros(3 * count * nbytes, dtype=torch.uint8)
            pair = [tensor.as_strided(shape, strides, nbytes) for tensor in (target, source[: 3 * count * nbytes])]
            assert_same_bits(copied(body, *pair), expected_copy(*pair))

    def test_bytes_at_any_alignment(self, body):
        whole = torch.arange(2000).remainder(249).to(torch.uint8)
        offsets = (0, 1, 2, 3, 4, 7, 8, 13, 16, 17)
        sizes = (0, 1, 2, 15, 16, 17, 31, 33, 64, 1500)
        cases = list(product(offsets, offsets, sizes))
        for at, to, nbytes in cases[:: max(1, len(cases) // body.examples)]:
            target, source = torch.zeros(1600, dtype=torch.uint8)[to : to + nbytes], whole[at : at + nbytes]
            assert_same_bits(copied(body, target, source), expected_copy(target, source))

    def test_many_runs_in_one_launch(self, body):
        sizes = [0, 1, 16, 5, CHUNK_NBYTES + 3, 0, 33, CHUNK_NBYTES, 7, 64]
        source = torch.arange(sum(sizes) + 200).remainder(247).to(torch.uint8)
        target = torch.zeros(sum(sizes) + 200, dtype=torch.uint8)
        runs, expected, to, at = [], target.clone(), 0, sum(sizes) + 100
        for number, nbytes in enumerate(sizes):  # forwards in the target, backwards in the source, gaps between
            at -= nbytes + number % 3
            runs.append((TARGET_BASE + 64 + to, SOURCE_BASE + at, nbytes))
            expected[64 + to : 64 + to + nbytes] = source[at : at + nbytes]
            to += nbytes + number % 5
        launch = plan_many(numpy.array(runs), body.lanes)
        found = body.run_many(launch, contents(target), contents(source))
        assert_same_bits(torch.frombuffer(bytearray(found), dtype=torch.uint8), expected)

    def test_the_latch_opens_for_its_flag_or_after_its_time(self, body):
        assert body.hold(1, 10**9, 100_000) == 1
        assert body.hold(0, 1_000_000, 100_000) == 2
