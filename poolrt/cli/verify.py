"""`poolrt verify`: does the sharded model compute what the unsharded one does?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import poolrt.api as api
from poolrt.cli.subject import add_subject, cards_of, load_subject, micro_batches_of
from poolrt.verification import Verification

NAME = "verify"
HELP = "one step sharded against one unsharded, every output and every gradient; exit code 1 if one is out of tolerance"

SCHEMA = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `poolrt verify`."""
    add_subject(parser)


def run(options: argparse.Namespace) -> int:
    """Make the user's model, run one step both ways and compare.

    Raises:
        ConfigurationError: if the function or the cards are not there.
        PoolrtError: if the model cannot be sharded.
    """
    make = load_subject(options.subject)
    topology = cards_of(options)
    model, sample = make()
    found = api.verify(
        lambda: model,
        sample,
        topology=topology,
        micro_batches=micro_batches_of(options),
        batch_dim=options.batch_dim,
    )
    print(json.dumps(to_dict(found), indent=2) if options.json else found)
    return 0 if found.ok else 1


def to_dict(found: Verification) -> dict[str, Any]:
    """The comparisons as plain values, schema 1."""
    comparisons = [asdict(comparison) | {"ok": comparison.ok} for comparison in found.comparisons]
    return {"schema": SCHEMA, "ok": found.ok, "comparisons": comparisons, "plan": found.plan.to_dict()}
