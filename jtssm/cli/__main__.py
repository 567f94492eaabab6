"""python -m jtssm.cli."""

import sys

from jtssm.cli import main

sys.exit(main())
