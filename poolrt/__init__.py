"""Several GPUs train one PyTorch model as if they were one card with the sum of their memory."""

from poolrt.api import copy, discover, logical, plan, report, shard, verify, virtual
from poolrt.errors import PoolrtError
from poolrt.memory.dlpack import exported
from poolrt.memory.extent import Extent, PoolStats
from poolrt.planning.plan import Plan
from poolrt.pool import Pool
from poolrt.reporting import Report
from poolrt.runtime.measuring.splitting import SplitWarning
from poolrt.runtime.placing.out_of_memory import OutOfMemoryError
from poolrt.topology.topology import Card, Link, Topology
from poolrt.verification import Comparison, Verification

__version__ = "0.1.0"

__all__ = [
    "Card",
    "Comparison",
    "Extent",
    "Link",
    "OutOfMemoryError",
    "Plan",
    "Pool",
    "PoolStats",
    "PoolrtError",
    "Report",
    "SplitWarning",
    "Topology",
    "Verification",
    "copy",
    "discover",
    "exported",
    "logical",
    "plan",
    "report",
    "shard",
    "verify",
    "virtual",
]
