"""Replicas that answer, and swap versions while they do; the client that watches them."""
