"""``python -m meanflow_ref``: the command line."""

from meanflow_ref.cli import main

raise SystemExit(main())
