"""Lines for whoever reads the log of firebuild itself. Python's logging is imported with the first line: most commands have none."""

from __future__ import annotations


def warning(name: str, message: str, *values: object) -> None:
    """As `logging.getLogger(name).warning`."""
    import logging

    logging.getLogger(name).warning(message, *values)


def debug(name: str, message: str, *values: object) -> None:
    """As `logging.getLogger(name).debug`."""
    import logging

    logging.getLogger(name).debug(message, *values)
