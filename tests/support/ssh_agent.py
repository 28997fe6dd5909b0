"""A stand-in for an SSH agent that holds no keys, and what asks one: messages as in draft-ietf-sshm-ssh-agent, section 5."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUEST_IDENTITIES, IDENTITIES_ANSWER, ADD_IDENTITY, FAILURE = 11, 12, 17, 5
# For the system's own perl, at $SSH_AUTH_SOCK: sends the types that it is given, prints those of the answers. No single quotes.
ASK = """\
use IO::Socket::UNIX;
for my $type (@ARGV) {
    my $agent = IO::Socket::UNIX->new(Peer => $ENV{SSH_AUTH_SOCK}) or die "no agent: $!";
    print $agent pack("NC", 1, $type);
    $agent->flush;
    sysread($agent, my $head, 5) == 5 or die "no answer";
    printf "asked %d, got %d\\n", $type, (unpack("NC", $head))[1];
}
"""


@contextmanager
def serve_agent(path: Path) -> Iterator[Path]:
    """An agent at that socket: to everything it answers that it has no identities."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                while client.recv(4096):
                    client.sendall((5).to_bytes(4, "big") + bytes((IDENTITIES_ANSWER,)) + bytes(4))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
