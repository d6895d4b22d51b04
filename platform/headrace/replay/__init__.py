"""The shared memory of earlier examples: which stay, which are drawn, how they are kept, and who serves them."""
