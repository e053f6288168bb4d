"""torch.distributed.pipelining as a contender: two processes of one thread each, joined by gloo.

    parent ---- ("GPipe", 4) ----> rank 0: first stage  --- hidden states --->  rank 1: last stage, loss
           <------ seconds ------                       <----- gradients -----

The processes wait, costing nothing, until the parent names a schedule; so they take their turn among contenders that
live in the parent.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from types import TracebackType

import torch
import torch.distributed as dist
from bert import BertShape, FirstStage, LastStage, make_batch, make_bert, mean_loss
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}
ANSWER_LIMIT_S = 300.0


class TorchPipeline:
    """Two worker processes that run one pipelined forward and backward whenever they are told to."""

    def __init__(self, shape: BertShape, first_layers: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="poolrt-bench-")
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._workers = []
        for rank in range(2):
            ours, theirs = context.Pipe()
            arguments = (rank, f"file://{self._folder.name}/rendezvous", shape, first_layers, theirs)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            self._ends.append(ours)
            self._workers.append(worker)

    def step(self, schedule: str, micro_batches: int) -> float:
        """Seconds of one forward and backward, gradients accumulated: the slower rank's, from a common start.

        Raises:
            RuntimeError: if a worker failed or does not answer; the message holds its traceback.
        """
        return max(answer[0] for answer in self._ask((schedule, micro_batches)))

    def gradient_norms(self) -> list[float]:
        """Each rank's Euclidean norm over the gradients of its last step."""
        return [answer[1] for answer in self._ask(None)]

    def _ask(self, question: tuple[str, int] | None) -> list[tuple[float, float]]:
        for end in self._ends:
            end.send(question)
        return [self._answer(rank) for rank in range(2)]

    def _answer(self, rank: int) -> tuple[float, float]:
        end = self._ends[rank]
        if not end.poll(ANSWER_LIMIT_S):
            raise RuntimeError(f"rank {rank} of the gloo pipeline gave no answer within {ANSWER_LIMIT_S:.0f} s")
        answer = end.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"rank {rank} of the gloo pipeline failed:\n{answer}")
        return answer

    def close(self) -> None:
        """Ends the workers."""
        for end in self._ends:
            end.close()
        for worker in self._workers:
            worker.join(timeout=10)
            if worker.is_alive():
                worker.terminate()
        self._folder.cleanup()

    def __enter__(self) -> TorchPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _work(rank: int, rendezvous: str, shape: BertShape, first_layers: int, end: Connection) -> None:
    try:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
        _answer_questions(_Rank(rank, shape, first_layers), end)
        dist.destroy_process_group()
    except Exception:
        end.send(traceback.format_exc())


def _answer_questions(rank: _Rank, end: Connection) -> None:
    while True:
        try:
            question = end.recv()
        except EOFError:
            return
        end.send((rank.step(*question), 0.0) if question else (0.0, rank.gradient_norm()))


class _Rank:
    """One stage and its share of the batch: rank 0 is given the tokens, rank 1 the labels."""

    def __init__(self, rank: int, shape: BertShape, first_layers: int) -> None:
        model, batch = make_bert(shape), make_batch(shape)
        self._rank = rank
        self._module = (FirstStage if rank == 0 else LastStage)(model, first_layers)
        self._inputs = (batch["input_ids"],) if rank == 0 else ()
        self._labels = None if rank == 0 else batch["labels"]
        self._schedules: dict[tuple[str, int], PipelineScheduleSingle] = {}

    def step(self, schedule: str, micro_batches: int) -> float:
        """Seconds of one step of this rank, from the moment both ranks are ready."""
        pipeline = self._schedule(schedule, micro_batches)
        self._module.zero_grad(set_to_none=True)
        dist.barrier()
        start = time.perf_counter()
        pipeline.step(*self._inputs, target=self._labels)
        return time.perf_counter() - start

    def gradient_norm(self) -> float:
        """The Euclidean norm over this stage's gradients."""
        norms = [parameter.grad.norm() for parameter in self._module.parameters() if parameter.grad is not None]
        return float(torch.stack(norms).norm())

    def _schedule(self, name: str, micro_batches: int) -> PipelineScheduleSingle:
        if (name, micro_batches) not in self._schedules:
            stage = PipelineStage(self._module, self._rank, 2, torch.device("cpu"))
            self._schedules[name, micro_batches] = SCHEDULES[name](stage, micro_batches, loss_fn=mean_loss)
        return self._schedules[name, micro_batches]
