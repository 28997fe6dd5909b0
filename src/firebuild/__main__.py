"""`python -m firebuild`: the command line."""

from firebuild.cli.entry import main

main()
