"""What a new thread would lose: each thing is shown to be lost without ThreadState, and kept with it."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from poolrt.runtime.state.thread_state import ThreadState

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


class NegatedRelu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return -result if func is torch.relu else result


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def context_variable():
    token = request_id.set("mine")
    yield
    request_id.reset(token)


def product_dtype() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def graph_is_built() -> bool:
    return (torch.ones(2, requires_grad=True) * 2).requires_grad


def saved_as() -> Any:
    """What autograd gives back for a tensor it saved."""
    x = torch.ones(2, requires_grad=True)
    return x.pow(2).grad_fn._saved_self.tolist()


def relu_of_one() -> float:
    return torch.relu(torch.ones(())).item()


CARRIED: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "bf16 autocast": (lambda: torch.autocast("cpu", dtype=torch.bfloat16), product_dtype),
    "fp16 autocast": (lambda: torch.autocast("cpu", dtype=torch.float16), product_dtype),
    "no_grad": (torch.no_grad, graph_is_built),
    "inference mode": (torch.inference_mode, lambda: torch.ones(1).is_inference()),
    "context variable": (context_variable, request_id.get),
    "function mode": (NegatedRelu, relu_of_one),
    "default device": (lambda: torch.device("meta"), lambda: torch.ones(1).device),
    "saved-tensor hooks": (
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t * 0),
        saved_as,
    ),
}


def in_thread(body: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(body()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("name", CARRIED)
def test_a_thread_sees_what_its_maker_sees(name: str) -> None:
    enter, look = CARRIED[name]
    usual = look()
    with enter():
        here, lost = look(), in_thread(look)
        state = ThreadState(())
    carried = in_thread(lambda: state.run(look))
    assert here != usual
    assert lost == usual
    assert carried == here
    assert in_thread(look) == usual


def test_a_dispatch_mode_goes_along() -> None:
    with Counting() as mode:
        in_thread(lambda: torch.ones(2).add(1))
        assert mode.seen == 0
        state = ThreadState(())
        in_thread(lambda: state.run(lambda: torch.ones(2).add(1)))
        assert mode.seen == 2
        torch.ones(2)
        assert mode.seen == 3
    torch.ones(2)
    assert mode.seen == 3


def test_modes_stay_in_their_order() -> None:
    class Tagged(TorchFunctionMode):
        def __init__(self, tag: str, log: list[str]) -> None:
            super().__init__()
            self.tag, self.log = tag, log

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.log.append(self.tag)
            return func(*args, **(kwargs or {}))

    log: list[str] = []
    with Tagged("outer", log), Tagged("inner", log):
        state = ThreadState(())
        log.clear()
        in_thread(lambda: state.run(lambda: torch.relu(torch.ones(()))))
        in_lane, log[:] = list(log), []
        torch.relu(torch.ones(()))
    assert in_lane == log
    assert log[:2] == ["inner", "outer"]


def test_autocast_of_a_card_is_carried(devices: tuple[torch.device, torch.device]) -> None:
    def dtype_on_card() -> torch.dtype:
        x = torch.ones(2, 2, device=devices[1])
        return (x @ x).dtype

    with torch.autocast("vcard", dtype=torch.bfloat16):
        assert in_thread(dtype_on_card) == torch.float32
        state = ThreadState(("vcard",))
    assert in_thread(lambda: state.run(dtype_on_card)) == torch.bfloat16


def test_autocast_switched_off_inside_is_carried_too() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        state = ThreadState(())
    assert in_thread(lambda: state.run(product_dtype)) == torch.float32


def test_a_thread_cannot_change_its_makers_context() -> None:
    state = ThreadState(())
    in_thread(lambda: state.run(lambda: request_id.set("theirs")))
    assert request_id.get() == "none"
    assert in_thread(lambda: state.run(request_id.get)) == "none"


def test_one_state_serves_several_threads_at_once() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), NegatedRelu(), context_variable():
        state = ThreadState(())
    together = threading.Barrier(4)
    seen: list[Any] = []

    def look() -> None:
        together.wait(timeout=30)
        seen.append((product_dtype(), graph_is_built(), relu_of_one(), request_id.get()))

    threads = [threading.Thread(target=state.run, args=(look,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(torch.bfloat16, False, -1.0, "mine")] * 4


class Where(torch.autograd.Function):
    """Notes the thread in which its backward runs."""

    threads: list[int]

    @staticmethod
    def forward(ctx: Any, x: Tensor, threads: list[int]) -> Tensor:
        ctx.threads = threads
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.threads.append(threading.get_ident())
        return gradient, None


def test_backward_stays_in_the_thread(devices: tuple[torch.device, torch.device]) -> None:
    """Otherwise torch runs it in a thread of its own per card, where nothing that was carried holds."""

    def backward() -> tuple[int, list[int]]:
        ran: list[int] = []
        x = torch.ones(2, device=devices[0], requires_grad=True)
        Where.apply(x, ran).sum().backward()
        return threading.get_ident(), ran

    ident, ran = in_thread(backward)
    assert ran != [ident]
    state = ThreadState(("vcard",))
    ident, ran = in_thread(lambda: state.run(backward))
    assert ran == [ident]
    assert torch.autograd.set_multithreading_enabled(True).prev


def test_an_error_leaves_the_thread_as_it_was() -> None:
    def fail() -> None:
        raise KeyError("mine")

    def body() -> tuple[bool, Any]:
        with pytest.raises(KeyError, match="mine"):
            state.run(fail)
        return torch.is_grad_enabled(), relu_of_one()

    with torch.no_grad(), NegatedRelu():
        state = ThreadState(())
    assert in_thread(body) == (True, 1.0)
