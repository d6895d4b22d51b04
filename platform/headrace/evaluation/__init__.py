"""What a model is worth, measured before it learns, and whether it may be published."""
