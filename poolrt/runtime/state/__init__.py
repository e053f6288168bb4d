"""What a model, a thread and a generator hold: looked at, kept, and put back."""
