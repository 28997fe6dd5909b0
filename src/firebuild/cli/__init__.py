"""The command line: the only part of firebuild that prints and exits."""
