"""Layers split across cards inside one process: regions are found, rewritten, and the rewrite is proven."""
