"""`python -m gristmill.trainer` is the `trainer` command: what torchrun starts."""

from gristmill.trainer.cli import main

main()
