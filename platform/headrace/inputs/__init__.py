"""The one way from events to model inputs; training, evaluation and serving have no other."""
