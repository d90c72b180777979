"""`python -m fswatchd` is the daemon."""

from fswatchd.daemon import main

raise SystemExit(main())
