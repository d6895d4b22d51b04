"""Encoders and the item table. Torch, but neither Ray nor any notion of shards, increments or commits."""
