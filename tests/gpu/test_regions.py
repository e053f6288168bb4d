"""Split layers on a CUDA GPU that plays several cards: run by `make gpu-check`, passed over without a GPU."""

from __future__ import annotations

import pytest
import torch
from runtime.regions.specimens import SPECIMENS, split_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("cards", [2, 4])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-2", "t5", "whisper", "encoder", "falcon-alibi"])
def test_every_gradient_agrees_with_the_model_on_one_card(name: str, cards: int) -> None:
    device = torch.device("cuda:0")
    reference, batch = SPECIMENS[name].build()
    reference.to(device)
    expected = reference(**{key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()})
    expected["loss"].backward()

    model, batch = SPECIMENS[name].build()
    split = split_model(model, batch, [device] * cards, [1.0] * cards)
    actual = model(**split.batch)
    actual["loss"].backward()
    split.installed.uninstall()

    torch.testing.assert_close(actual["loss"], expected["loss"], rtol=1e-12, atol=0)
    gradients = {key: parameter.grad for key, parameter in reference.named_parameters() if parameter.grad is not None}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, parameter in model.named_parameters():
        gradient = split.pieces.gradient(parameter)
        assert (gradient is None) == (key not in gradients), key
        if gradient is not None:
            assert (gradient - gradients[key].cpu()).abs().max().item() <= 1e-11 * scale, key


def test_a_loss_over_parts_waits_for_no_card() -> None:
    from poolrt.runtime.regions.running.vocabulary_loss import parted_cross_entropy

    parts = [torch.randn(2, 3, device="cuda:0") for _ in range(2)]
    target = torch.tensor([0, 5], device="cuda:0")
    expected = torch.nn.functional.cross_entropy(torch.cat(parts, -1), target)
    torch.testing.assert_close(parted_cross_entropy(parts, target, torch.device("cuda:0")), expected)
