"""Somebody's loss, measured from outside: a probe in the network's place, what it records, and what follows from it."""
