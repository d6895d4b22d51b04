"""Counting experts: exact, instantly fresh, and unable to forget. Pure numpy; no torch."""
