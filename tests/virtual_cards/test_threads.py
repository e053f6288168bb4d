"""Cards work at the same time: each with its own thread, none disturbing another."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from poolrt.units import GIB, MIB
from poolrt.virtual_cards import backend

ROUNDS = 12


def losses(device: str, seed: int) -> list[float]:
    generator = torch.Generator(device).manual_seed(seed)
    weights = [torch.randn(32, 32, device=device, generator=generator).requires_grad_() for _ in range(3)]
    x = torch.randn(16, 32, device=device, generator=generator)
    seen = []
    for _ in range(ROUNDS):
        h = x
        for weight in weights:
            h = nn.functional.dropout(nn.functional.gelu(h @ weight), 0.1)
        loss = h.pow(2).mean()
        gradients = torch.autograd.grad(loss, weights)
        seen += [loss.item(), *(gradient.sum().item() for gradient in gradients)]
    return seen


@pytest.mark.parametrize("engine_threads", [True, False])
def test_cards_side_by_side_get_the_bits_of_one_alone(engine_threads):
    backend.configure([GIB] * 4)
    torch.manual_seed(9)
    alone = [losses(f"vcard:{card}", card) for card in range(4)]
    found: dict[int, list[float]] = {}

    def work(card: int) -> None:
        torch.set_num_threads(1)
        with torch.autograd.set_multithreading_enabled(engine_threads), torch.vcard.device(card):
            found[card] = losses(f"vcard:{card}", card)

    torch.manual_seed(9)
    threads = [threading.Thread(target=work, args=(card,)) for card in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[card] for card in range(4)] == alone
    # autograd's own threads let go of their last gradients a moment after backward has returned; that all of it goes
    # is what `nothing_left_behind` waits for


def test_each_thread_has_its_own_current_card():
    torch.vcard.set_device(1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.vcard.current_device()))
    thread.start()
    thread.join()
    assert seen == [0]
    assert torch.vcard.current_device() == 1


def test_one_card_may_be_used_by_several_threads():
    def work() -> None:
        for _ in range(200):
            torch.ones(1000, device="vcard:0").add(1).sum()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.vcard.memory_allocated(0) == 0


def test_a_full_card_does_not_disturb_its_neighbour():
    backend.configure([MIB, GIB])
    refused = []

    def ask_in_vain() -> None:
        for _ in range(200):
            try:
                torch.empty(2 * MIB, device="vcard:0")
            except torch.OutOfMemoryError:
                refused.append(1)

    thread = threading.Thread(target=ask_in_vain)
    thread.start()
    for _ in range(200):
        torch.empty(2 * MIB, device="vcard:1")
    thread.join()
    assert len(refused) == 200


def test_operators_let_other_python_threads_run():
    """The interpreter lock is free while a kernel works: the other thread is seen to run in the middle of one."""
    x = torch.randn(1500, 1500, device="vcard:0")
    ticks: list[int] = []
    working, done = threading.Event(), threading.Event()

    def tick() -> None:
        working.wait()
        while not done.is_set():
            ticks.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    working.set()
    for _ in range(3):
        x = (x @ x).tanh()
    seen_during = len(ticks)
    done.set()
    thread.join()
    assert seen_during > 0


ENDS_AFTER_BACKWARD = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # so that autograd's thread is still busy when the script ends
import torch, poolrt
poolrt.virtual(cards=2, memory="64MiB")
class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2
    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2
weight = torch.nn.Parameter(torch.randn(64, 64, device="vcard:0"))
for _ in range(3):
    Twice.apply(weight).sum().backward()
"""


def test_a_script_may_end_with_backward():
    """Autograd's threads need the interpreter to let go of what they ran; without a wait half of these runs abort."""
    runs = [
        subprocess.Popen([sys.executable, "-c", ENDS_AFTER_BACKWARD], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode == 0, said
