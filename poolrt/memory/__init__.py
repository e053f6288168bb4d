"""Where bytes live: the pool, whose tensors may span cards and the host."""
