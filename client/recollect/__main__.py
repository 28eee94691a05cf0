"""`python -m recollect` is the command `recollect`."""

from recollect._cli import main

main()
