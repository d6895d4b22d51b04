"""Continual learning compared: what each method is worth, in periods and in event time, on the same queries."""
