"""Draw a long list of prompts: `python scripts/render.py prompts.txt --out renders` is `genpipe render ...`."""

import sys

from genpipe.cli import main

if __name__ == "__main__":
    sys.exit(main(["render", *sys.argv[1:]]))
