"""Judging a loss of any framework from a recording, with numpy alone. The format is documented in ``docs/tape.md``."""
