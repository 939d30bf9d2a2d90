"""`python -m rockroll` is the `rockroll` command."""

from rockroll.cli.main import main

main()
