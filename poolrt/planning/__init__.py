"""What to do: a profile and a topology in, a plan out. Pure, and without torch."""

from poolrt.planning.explain import explain
from poolrt.planning.largest import largest_batch
from poolrt.planning.place_by_weight import place_by_weight
from poolrt.planning.plan import CardPlan, Plan, PredictedBytes
from poolrt.planning.planner import make_plan
from poolrt.planning.profile import CallFacts, LayerFacts, Profile, TiedParameter
from poolrt.planning.schedule import Action, gpipe_order

__all__ = [
    "Action",
    "CallFacts",
    "CardPlan",
    "LayerFacts",
    "Plan",
    "PredictedBytes",
    "Profile",
    "TiedParameter",
    "explain",
    "gpipe_order",
    "largest_batch",
    "make_plan",
    "place_by_weight",
]
