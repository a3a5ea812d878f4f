"""`python -m osprey_tp` is `osprey-tp`."""

import sys

from osprey_tp.cli import main

sys.exit(main())
