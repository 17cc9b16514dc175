"""Checks of losses that are written in other frameworks; each imports its framework alone."""
