"""The errors that the API answers with, in Firecracker's own words."""

from __future__ import annotations

NOT_PREBOOT = "The requested operation is not supported before starting the microVM."
NOT_POSTBOOT = "The requested operation is not supported after starting the microVM."


class Fault(Exception):
    """A request that is refused: the HTTP status and the `fault_message` of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def not_served(what: str) -> Fault:
    """What Firecracker knows and the emulator does not do, by name."""
    return Fault(f"The requested operation is not supported: the emulator does not serve {what}.")


def os_text(error: OSError) -> str:
    """An OSError as Rust's std::io::Error prints it."""
    return f"{error.strerror} (os error {error.errno})"
