"""``python -m banaudit``."""

import sys

from banaudit.cli import main

if __name__ == "__main__":
    sys.exit(main())
