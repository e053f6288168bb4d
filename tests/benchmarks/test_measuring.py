import json
from pathlib import Path

import torch
from torch import nn


def test_contenders_take_turns_and_warm_up_is_not_counted() -> None:
    from measuring import interleaved

    ran = []
    contenders = {"a": lambda: ran.append("a"), "b": lambda: ran.append("b") or 7.0}
    times = interleaved(contenders, rounds=3, warmup=2)
    assert "".join(ran) == "abbaabbaab", "there and back"
    assert len(times["a"]) == 3
    assert times["b"] == [7.0] * 3


def test_the_ratio_is_taken_round_by_round() -> None:
    from measuring import median_ratio

    assert median_ratio([2.0, 20.0, 30.0], [1.0, 10.0, 10.0]) == 2.0


def test_a_step_over_parts_gives_the_gradient_of_the_whole() -> None:
    from measuring import training_step

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, rows: torch.Tensor):
            class Output:
                loss = self.linear(rows).square().mean()

            return Output

    model, rows = Model(), torch.randn(4, 3)
    gradients = []
    for parts in ([rows], list(rows.chunk(2))):
        training_step(model, [{"rows": part} for part in parts])()
        gradients.append(model.linear.weight.grad)
    torch.testing.assert_close(*gradients)


def test_json_says_where_and_how_it_was_measured(tmp_path: Path) -> None:
    from measuring import read_json, write_json

    path = tmp_path / "deep" / "results.json"
    assert read_json(path) == {}
    write_json(path, "speed", {"rows": [1]})
    body = json.loads(path.read_text())
    assert body == read_json(path)
    assert (body["schema"], body["benchmark"], body["rows"]) == (1, "speed", [1])
    assert {"date", "command", "python", "torch", "processor", "cores"} <= set(body["environment"])
    write_json(None, "speed", {})
