"""`poolrt plan`: which layers would go where, does it fit, how long does a step take?"""

from __future__ import annotations

import argparse

import poolrt.api as api
from poolrt.cli.subject import add_subject, cards_of, load_subject, micro_batches_of

NAME = "plan"
HELP = "which layers would go where and what it would cost; trains nothing; exit code 2 if nothing fits"

_DOES_NOT_FIT = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `poolrt plan`."""
    add_subject(parser)
    parser.add_argument(
        "--optimizer", metavar="NAME", default="adamw", help="what will train it: adamw, sgd, none, ..."
    )
    parser.add_argument("--spill", metavar="SIZE", default="auto", help="auto, never, or what the host may hold: 8GiB")


def run(options: argparse.Namespace) -> int:
    """Make the user's model, plan it and print the plan.

    Raises:
        ConfigurationError: if the function or the cards are not there.
        PoolrtError: if the model or the sample cannot be planned for.
    """
    make = load_subject(options.subject)
    topology = cards_of(options)
    model, sample = make()
    plan = api.plan(
        model,
        sample,
        topology,
        micro_batches=micro_batches_of(options),
        batch_dim=options.batch_dim,
        optimizer=options.optimizer,
        spill=options.spill,
    )
    print(plan.to_json() if options.json else plan.explain())
    return 0 if plan.feasible else _DOES_NOT_FIT
