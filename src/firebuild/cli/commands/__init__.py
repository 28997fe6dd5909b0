"""One file per noun: the commands."""
