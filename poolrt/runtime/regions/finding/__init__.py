"""Which modules can be split, and how: looked for without names, and proven forward and backward."""
