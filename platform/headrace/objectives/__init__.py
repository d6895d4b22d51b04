"""What is predicted, as a loss over query vectors and item vectors. Torch; no notion of increments or ranks."""
