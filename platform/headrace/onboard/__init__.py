"""The first minutes of a newcomer: a look at a log of their own, without Ray and without a recipe."""
