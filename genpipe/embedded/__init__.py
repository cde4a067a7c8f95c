"""The model that ships; README.md beside this file is its card."""

from pathlib import Path

EMBEDDED = Path(__file__).parent
JUDGES = EMBEDDED / "judge"
