"""`python -m poolrt`: the command line."""

from poolrt.cli.main import main

raise SystemExit(main())
