"""Doing it: lanes over cards, from a planned placement to one step of training."""
