"""What a warm start saves: `run --warm` against a cold `run`, from the command to its end, as a ratio of medians measured in turn.

Real guests that run `true`. Needs root and a state with a kernel and the image (`--image`), which it works in; the machines are
removed, and `firebuild gc` removes the snapshot in time. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time

from tests.support.cli import PROGRAM


def measure(image: str, *words: str) -> float:
    """Seconds of one machine, from the command to its end."""
    began = time.perf_counter()
    subprocess.run([str(PROGRAM), "run", "--rm", *words, "--from", image, "--", "true"], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image", default="debian:bookworm-slim")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    # The disk, and the snapshot, are made by the first.
    measure(arguments.image, "--no-warm")
    first = measure(arguments.image, "--warm")
    cold, warm = [], []
    for _ in range(arguments.rounds):
        cold.append(measure(arguments.image, "--no-warm"))
        warm.append(measure(arguments.image, "--warm"))
    ratio = statistics.median(warm) / statistics.median(cold)
    print(
        f"cold {statistics.median(cold):.2f} s, warm {statistics.median(warm):.2f} s: {ratio:.2f} (the first {first:.2f} s)"
    )


if __name__ == "__main__":
    main()
