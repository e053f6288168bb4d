"""A first batch measured: costs of the calls, how layers can be split, whether the batch may be cut."""
