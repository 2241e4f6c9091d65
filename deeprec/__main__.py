"""`python -m deeprec` is the `deeprec` command."""

from __future__ import annotations

from deeprec.cli import main

if __name__ == "__main__":
    main()
