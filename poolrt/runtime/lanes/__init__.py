"""Micro-batches at work: threads that walk the cards in a fixed order, forward and backward."""
