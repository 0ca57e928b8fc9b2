"""`python -m xentrs` is the command `xentrs`."""

import sys

from xentrs._cli import main

if __name__ == "__main__":
    sys.exit(main())
