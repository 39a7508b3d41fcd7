"""`python -m paramserver`: the same as the command `paramserver`."""

import sys

from paramserver.cli import main

if __name__ == "__main__":
    sys.exit(main())
