"""`python -m cvops.cli`: the `cvops` command without its installed script."""

import sys

from cvops.cli import main

sys.exit(main())
