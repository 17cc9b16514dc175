"""Losses, pure and deterministic, and the parts that they share."""
