"""What does splitting layers over cards cost, region by region, and what does a step take beside other ways?

    python benchmarks/tensor_parallel.py --json tensor_parallel.json
    python benchmarks/tensor_parallel.py --quick                       # a smaller BERT, two rounds
    python benchmarks/tensor_parallel.py --cuda                        # shares of the first GPU

Virtual cards compute in the thread that asks them to: in forward the cards take turns, in backward each has a thread of
its own, and all share the machine's cores. Shares of one GPU share its multiprocessors. So no figure here is a speed-up
of several GPUs; what carries over is the count of operations and bytes, and what a region costs beside the whole layer.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from bert import BertShape, make_batch, make_bert
from cards import make_cards, synchronize
from measuring import benchmark_parser, interleaved, median_ratio, training_step, write_json
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import poolrt
from poolrt.transfer.collectives.exchange import Exchange

FULL = BertShape(layers=12, batch_size=8)
QUICK = BertShape(layers=2, hidden=128, batch_size=4, sequence_length=32)
_COPIES = ("_to_copy", "copy_")


class Operations(TorchDispatchMode):
    """Counts operations, and what is copied from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.copies = self.copied_nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run and count one operation."""
        result = func(*args, **(kwargs or {}))
        self.count += 1
        if func._schema.name.rpartition("::")[2] in _COPIES:
            source = next(x for x in reversed(tree_leaves(args)) if isinstance(x, Tensor))
            if isinstance(result, Tensor) and result.device != source.device:
                self.copies, self.copied_nbytes = self.copies + 1, self.copied_nbytes + source.nbytes
        return result


def main(arguments: list[str] | None = None) -> None:
    """Measures regions and steps, prints two tables and writes the JSON."""
    options = _parse(arguments)
    console = Console()
    found = measure(QUICK if options.quick else FULL, options.cards, options.rounds, options.memory, cuda=options.cuda)
    console.print(_region_table(found["regions"]))
    console.print(_step_table(found))
    limit = found["launch_bound"]
    console.print(
        f"one operation of this model takes {limit['mean_operation_s'] * 1e6:.1f} us on one card, starting an empty "
        f"one {limit['launch_s'] * 1e6:.1f} us: one thread drives {options.cards} cards, so splitting can pay where "
        f"the former is more than {options.cards} times the latter"
    )
    write_json(options.json, "tensor_parallel", found)


def measure(shape: BertShape, cards: int, rounds: int, memory: str, *, cuda: bool) -> dict[str, Any]:
    """Costs of every form of region, and seconds per step of one card, of layers on cards, and of split layers."""
    topology = make_cards(cards, memory, cuda=cuda)
    batch, model = make_batch(shape), make_bert(shape)
    lead = torch.device(topology.cards[0].device)
    whole = nn.Module.to(copy.deepcopy(model), lead)
    pipeline = poolrt.shard(copy.deepcopy(model), topology=topology, sample=batch)
    split = poolrt.shard(copy.deepcopy(model), topology=topology, sample=batch, tensor_parallel=cards)
    on_lead = {name: value.to(lead) for name, value in batch.items()}
    contenders = {
        "one card": _finished(training_step(whole, [on_lead]), topology),
        "layers on cards": _finished(training_step(pipeline, [batch]), topology),
        "split layers": _finished(training_step(split, [batch]), topology),
    }
    times = interleaved(contenders, rounds)
    with Operations() as counted:
        whole(**on_lead)
    synchronize(topology)
    forward_s = _median_s(lambda: whole(**on_lead), topology, rounds)
    plan, launch_s = poolrt.report(split).plan, _launch_s(lead, topology)
    return {
        "shape": vars(shape),
        "cards": cards,
        "regions": _regions(whole, split, on_lead, plan.split_modules, topology, rounds, launch_s),
        "median_s": {name: statistics.median(values) for name, values in times.items()},
        "seconds": times,
        "split_over_one_card": median_ratio(times["split layers"], times["one card"]),
        "split_over_layers_on_cards": median_ratio(times["split layers"], times["layers on cards"]),
        "predicted_step_s": plan.predicted_step_s,
        "launch_bound": {"mean_operation_s": forward_s / counted.count, "launch_s": launch_s},
        "notes": list(plan.notes),
    }


def _regions(
    whole: nn.Module,
    split: nn.Module,
    batch: dict[str, Tensor],
    names: tuple[str, ...],
    topology: Any,
    rounds: int,
    launch_s: float,
) -> list[dict[str, Any]]:
    """One row for each form of region: modules whose names differ in a number alone are of one form.

    `split_launch_s` is what one thread takes to start the operations of all cards, were they empty: no region that is
    split can be faster. `exchange_s` is what its copies and sums take without any work between them.
    """
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(re.sub(r"\d+", "N", name), []).append(name)
    rows = []
    for form, (name, *others) in forms.items():
        before = _region(whole, name, batch, topology, rounds)
        after = _region(split, name, batch, topology, rounds)
        row = {
            "form": form,
            "calls": 1 + len(others),
            "copies": after["copies"],
            "copied_nbytes": after["copied_nbytes"],
            "split_launch_s": after["operations"] * launch_s,
            "exchange_s": _exchange_s(whole, name, batch, topology, rounds),
        }
        for kind, found in (("whole", before), ("split", after)):
            row |= {f"{kind}_operations": found["operations"], f"{kind}_s": found["s"]}
        rows.append(row)
    return rows


def _region(model: nn.Module, name: str, batch: dict[str, Tensor], topology: Any, rounds: int) -> dict[str, Any]:
    """What one call of a module costs, as the model calls it, forward alone."""
    (args, kwargs), module = _call_of(model, name, batch), model.get_submodule(name)
    with Operations() as counted:
        module(*args, **kwargs)
    seconds = _median_s(lambda: module(*args, **kwargs), topology, rounds)
    return {
        "operations": counted.count,
        "s": seconds,
        "copies": counted.copies,
        "copied_nbytes": counted.copied_nbytes,
    }


def _exchange_s(model: nn.Module, name: str, batch: dict[str, Tensor], topology: Any, rounds: int) -> float:
    """Seconds to give a region's tensors to all cards, and to add up as many bytes as its output has."""
    args, kwargs = _call_of(model, name, batch)
    devices = [torch.device(card.device) for card in topology.cards]
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with torch.no_grad():
        outputs = tree_leaves(model.get_submodule(name)(*args, **kwargs))
    like = next(leaf for leaf in outputs if isinstance(leaf, Tensor))
    parts = [torch.zeros_like(like, device=device) for device in devices]

    def exchanged() -> None:
        with torch.no_grad(), Exchange(devices) as exchange:
            for tensor in inputs:
                exchange.fork(tensor)
            for card in range(len(devices)):
                exchange.land(card)
            exchange.join([exchange.leave(card, part) for card, part in enumerate(parts)])

    return _median_s(exchanged, topology, rounds)


def _call_of(model: nn.Module, name: str, batch: dict[str, Tensor]) -> Any:
    """What a module of the model is called with, without history."""
    calls: list[Any] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, calls[0])


def _finished(run: Callable[[], Any], topology: Any) -> Callable[[], None]:
    def finished() -> None:
        run()
        synchronize(topology)

    return finished


def _median_s(run: Callable[[], Any], topology: Any, rounds: int) -> float:
    """Seconds of one run, forward alone."""
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        run()
        synchronize(topology)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _launch_s(device: torch.device, topology: Any, count: int = 200) -> float:
    """Seconds that the host takes to start one operation which does next to nothing."""
    one = torch.ones(1, device=device)
    synchronize(topology)
    started = time.perf_counter()
    for _ in range(count):
        one.add_(1)
    return (time.perf_counter() - started) / count


def _region_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        Column("region", overflow="fold"),
        "calls",
        "operations whole",
        "split",
        "copies",
        "KiB copied",
        "ms whole",
        "split",
        "of it launches",
        "exchange",
    )
    table.title = "One call of each form of region, forward"
    for row in rows:
        table.add_row(
            row["form"],
            str(row["calls"]),
            str(row["whole_operations"]),
            str(row["split_operations"]),
            str(row["copies"]),
            f"{row['copied_nbytes'] / 1024:.1f}",
            f"{row['whole_s'] * 1e3:.3f}",
            f"{row['split_s'] * 1e3:.3f}",
            f"{row['split_launch_s'] * 1e3:.3f}",
            f"{row['exchange_s'] * 1e3:.3f}",
        )
    return table


def _step_table(found: dict[str, Any]) -> Table:
    table = Table("step, forward and backward", "s", "split layers over it", title=f"BERT on {found['cards']} cards")
    ratios = {"one card": "split_over_one_card", "layers on cards": "split_over_layers_on_cards"}
    for name, seconds in found["median_s"].items():
        table.add_row(name, f"{seconds:.3f}", f"{found[ratios[name]]:.3f}" if name in ratios else "")
    return table


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = benchmark_parser(
        __doc__, quick="a smaller BERT", cuda="shares of the first GPU instead of virtual cards", rounds=3
    )
    parser.add_argument("--cards", type=int, default=2, help="how many")
    parser.add_argument("--memory", default="4GiB", help="of each card")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
