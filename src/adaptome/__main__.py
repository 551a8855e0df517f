"""`python -m adaptome` is the command `adaptome`."""

from adaptome.cli import main

main()
