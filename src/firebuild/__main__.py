"""`python -m firebuild`: the command line."""

from firebuild.cli.main import main

main()
