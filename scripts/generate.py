"""Draw pictures from a prompt: `python scripts/generate.py "pirate ship"` is `genpipe generate "pirate ship"`."""

import sys

from genpipe.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
