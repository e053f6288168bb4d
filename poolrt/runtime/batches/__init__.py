"""A batch in micro-batches and back: scatter, gather, and the rules that put outputs together."""
