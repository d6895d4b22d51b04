"""How the experts' probabilities become one score: weights that the stream sets, and the mixture."""
