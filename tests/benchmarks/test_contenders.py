"""The contenders of the overlap benchmark compute what they are compared for: the whole model's gradients."""

import pytest
import torch


@pytest.fixture
def shape():
    from bert import BertShape

    return BertShape(layers=2, hidden=64, batch_size=4, sequence_length=8)


def norms_of_stages(shape) -> list[float]:
    """Gradient norms of the two stages, from one backward of the whole model."""
    from bert import FirstStage, LastStage, make_batch, make_bert

    model = make_bert(shape)
    model(**make_batch(shape)).loss.backward()
    stages = (FirstStage(model, 1), LastStage(model, 1))
    gradients = ([p.grad for p in stage.parameters() if p.grad is not None] for stage in stages)
    return [float(torch.stack([gradient.norm() for gradient in stage]).norm()) for stage in gradients]


def test_stages_cut_by_hand_are_the_whole_model(shape) -> None:
    from bert import FirstStage, LastStage, make_batch, make_bert, mean_loss

    model, batch = make_bert(shape), make_batch(shape)
    whole = model(**batch)
    logits = LastStage(model, 1)(FirstStage(model, 1)(batch["input_ids"]))
    torch.testing.assert_close(logits, whole.logits)
    torch.testing.assert_close(mean_loss(logits, batch["labels"]), whole.loss)


def test_gloo_pipelines_accumulate_the_whole_models_gradients(shape) -> None:
    from torch_pipelining import SCHEDULES, TorchPipeline

    expected = norms_of_stages(shape)
    with TorchPipeline(shape, first_layers=1) as pipeline:
        for schedule in SCHEDULES:
            for count in (2, 4):
                assert pipeline.step(schedule, count) > 0
                assert pipeline.gradient_norms() == pytest.approx(expected, rel=1e-4)
        with pytest.raises(RuntimeError, match="Number of microbatches"):
            pipeline.step("1F1B", 1)


def test_two_threads_leave_gradients_on_both_stages(shape) -> None:
    from two_threads import TwoThreads

    threads = TwoThreads(shape, first_layers=1)
    threads.step(2)
    for stage in (threads._first, threads._last):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.layers.parameters())


@pytest.mark.parametrize(("cards", "micro_batches", "speedup"), [(2, 2, 4 / 3), (2, 4, 1.6), (4, 8, 32 / 11)])
def test_ideal_speedup(cards: int, micro_batches: int, speedup: float) -> None:
    from sleeping import ideal_speedup

    assert ideal_speedup(cards, micro_batches) == pytest.approx(speedup)


def test_sleeping_layers_compute_and_learn() -> None:
    from sleeping import WIDTH, sleeping_model

    model, rows = sleeping_model(layers=1), torch.randn(2, WIDTH)
    output = model(rows)
    torch.testing.assert_close(output, model[0].linear(rows))
    output.sum().backward()
    torch.testing.assert_close(model[0].linear.bias.grad, torch.full((WIDTH,), 2.0))
