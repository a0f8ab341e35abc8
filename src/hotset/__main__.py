"""`python -m hotset` is the command line."""

from hotset.cli import main

main()
