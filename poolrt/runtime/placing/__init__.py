"""Layers on their cards: where parameters stand, what spills, whose share it is."""
