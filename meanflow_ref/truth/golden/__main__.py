"""``python -m meanflow_ref.truth.golden``: what ``make golden`` runs."""

from __future__ import annotations

import sys

from meanflow_ref.errors import MeanFlowError
from meanflow_ref.truth.golden.command import main

if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except MeanFlowError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
