"""`python -m genpipe` is the `genpipe` command."""

import sys

from genpipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
