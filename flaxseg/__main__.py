"""`python -m flaxseg`."""

import sys

from flaxseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
