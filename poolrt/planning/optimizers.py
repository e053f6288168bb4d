"""What an optimizer keeps on a card, and what its step needs on top for a moment.

Read from torch.optim's foreach implementations, which accelerators use by default: state lives as long as the
optimizer; temporaries are the lists of tensors that one `step()` makes and frees, at their highest. Both are counted
in bytes per byte of trainable parameters. Step counters stay on the host. A test runs torch and keeps every row true.
"""

from __future__ import annotations

from dataclasses import dataclass

from poolrt.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class OptimizerCost:
    """Bytes per byte of trainable parameters."""

    state: int
    """kept from step to step: moments, momentum, sums"""
    temporaries: int
    """highest sum of what one step makes and frees"""
    trains: bool = True
    """False: no backward at all, so no gradients and no saved activations"""


_COSTS = {
    # exp_avg, exp_avg_sq; _foreach_sqrt(exp_avg_sq). L2 weight decay makes new gradients, but drops them before that.
    "adam": OptimizerCost(state=2, temporaries=1),
    # Decoupled weight decay works on the parameters in place.
    "adamw": OptimizerCost(state=2, temporaries=1),
    # One moment more: max_exp_avg_sq.
    "adam-amsgrad": OptimizerCost(state=3, temporaries=1),
    "adamw-amsgrad": OptimizerCost(state=3, temporaries=1),
    # exp_avg, exp_inf; _foreach_abs(gradients).
    "adamax": OptimizerCost(state=2, temporaries=1),
    # exp_avg, exp_avg_sq; _foreach_sqrt(exp_avg_sq).
    "nadam": OptimizerCost(state=2, temporaries=1),
    "radam": OptimizerCost(state=2, temporaries=1),
    # Without weight decay nothing is made.
    "sgd": OptimizerCost(state=0, temporaries=0),
    # Gradient + weight_decay * parameter is a new list.
    "sgd-weight-decay": OptimizerCost(state=0, temporaries=1),
    # momentum_buffer. Nesterov adds into the gradients in place.
    "sgd-momentum": OptimizerCost(state=1, temporaries=0),
    "sgd-momentum-weight-decay": OptimizerCost(state=1, temporaries=1),
    # square_avg, with momentum also momentum_buffer; _foreach_sqrt(square_avg).
    "rmsprop": OptimizerCost(state=1, temporaries=1),
    "rmsprop-momentum": OptimizerCost(state=2, temporaries=1),
    # sum; _foreach_sqrt(sum), and the gradients times the learning rate.
    "adagrad": OptimizerCost(state=1, temporaries=2),
    # square_avg, acc_delta; the root of each.
    "adadelta": OptimizerCost(state=2, temporaries=2),
    # Forward only.
    "none": OptimizerCost(state=0, temporaries=0, trains=False),
}

OPTIMIZERS = tuple(_COSTS)
"""the names that planning knows"""


def optimizer_cost(name: str) -> OptimizerCost:
    """The costs of the optimizer called `name`, such as "adamw" or "sgd-momentum"; "none" for inference.

    Raises:
        ConfigurationError: if planning does not know the name.
    """
    if name not in _COSTS:
        raise ConfigurationError(f"planning knows no optimizer {name!r}; choose one of: {', '.join(_COSTS)}")
    return _COSTS[name]
