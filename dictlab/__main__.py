"""`python -m dictlab`."""

import sys

from dictlab.cli import main

sys.exit(main())
