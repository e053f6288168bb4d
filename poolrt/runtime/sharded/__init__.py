"""Parameters whose pieces live on several cards, and that are still the user's parameters."""

import poolrt.runtime.sharded.operators  # noqa: F401 (it gives sharded tensors their operators)
