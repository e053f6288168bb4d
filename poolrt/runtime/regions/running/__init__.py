"""Modules that run split: their forwards, and what goes between the cards."""
