"""The `genpipe` command: parsing and printing only.

stdout holds the paths of what was saved and nothing else; all else goes to stderr. Exit status: 0 done; 1 the machine
failed (disk, memory, network); 2 the command asks for what cannot be; 130 interrupted. torch is imported only once
everything that can be checked without it has been.
"""

import os
import sys
import warnings
from collections.abc import Sequence

from genpipe.cli.output import complain, flush, show_warning
from genpipe.cli.parser import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own, and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # What the shell closed (`>&-`) Python leaves as None.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            try:
                args = parse(arguments)
                return args.run(args)
            finally:
                # Here and not at exit, where Python itself would complain of a reader that has gone or of a full disk.
                flush()
        except KeyboardInterrupt:
            print("\ngenpipe: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 1
        except ValueError as error:
            complain(error)
            return 2
        except (OSError, RuntimeError, MemoryError) as error:
            complain(error)
            return 1
