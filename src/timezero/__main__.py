"""`python -m timezero`."""

import sys

from timezero.cli import main

sys.exit(main())
