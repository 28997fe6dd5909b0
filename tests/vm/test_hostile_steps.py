"""RUN steps that mean harm: each ends in its own clear error, or well; the host is untouched, and nothing is left.

Those that may end well share one build, and so one machine; one that has to fail has a build of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import BUILD_TIMEOUT_S, INTERRUPT_TIMEOUT_S, Cli
from tests.vm.conftest import BASE

TAG = "tests/hostile:1"
MIB = 1 << 20
# What a terminal would obey: the clipboard, its title, the cursor, the other screen, a status report.
CONTROL = r"\033]52;c;aGk=\007\033]0;title\007\033[2J\033[1;1H\033[?1049h\033[6n\2332J\000\377\376\b\r"
# mknod(2) of everything that the kernel has a driver for; then what must not be opened is opened.
EVERY_DEVICE = r"""
mkdir /d && perl -e '
  use Fcntl; my (%devices, $tried);
  open(P, "/proc/devices"); while (<P>) { $kind = lc $1 if /^(C|B)/; next unless /^ *(\d+) /;
    $devices{"$kind$1.$_"} = [$kind eq "c" ? 0020600 : 0060600, $1 << 8 | $_] for ($kind eq "c" ? (0..4, 11, 64) : (0, 16, 32)); }
  for my $name (sort keys %devices) {
    my ($path, $zeros) = ("/d/$name", "\0" x 4096);
    syscall(133, $path, $devices{$name}[0], $devices{$name}[1]) == 0 or die "mknod $name: $!";
    next if $name =~ /^c(1\.[35789]|5\.[02]|136\.)/;
    $tried++;
    sysopen(D, $path, O_RDWR | O_NONBLOCK) or sysopen(D, $path, O_WRONLY | O_NONBLOCK) or next;
    print "OPEN $name\n"; syswrite(D, $zeros);
  }
  print "tried $tried\n";
'; rm -r /d
"""
GUEST_ATTACKS = """
(echo b >/proc/sysrq-trigger) && echo BAD sysrq
(echo 1 >/proc/sys/vm/panic_on_oom) && echo BAD sysctl
(echo x >/proc/sys/kernel/core_pattern) && echo BAD core_pattern
(umount /proc || umount -l / || umount /etc/hosts) && echo BAD umount
mount -t tmpfs x /mnt && echo BAD mount
(echo x >/sys/kernel/uevent_helper) && echo BAD uevent_helper
perl -e 'my $text = "x";
  syscall(169, 0xfee1dead, 672274793, 0x1234567, 0) == 0 and print "BAD reboot ";
  syscall(175, $text, 1, $text) == 0 and print "BAD init_module ";
  syscall(308, 0, 0) == 0 and print "BAD setns ";'
rm /etc/resolv.conf && echo BAD resolv.conf
kill -9 1; kill -9 -1
ls /proc | grep -c '^[0-9]'
echo still here
"""
ODD_FILES = r"""
mkdir /h && cd /h && perl -e '
  for my $i (0..60) { my $n = "d" x 250; mkdir $n or die; chdir $n or die; }
  open(F, ">leaf"); print F "deep"; close F; chdir "/h";
  for my $name ("new\nline", "x" x 255, "\xff\xfe\x80", " \\ \t\"\x27\x01\e[2J", "-rf", "*") {
    open(F, ">", $name) or die; close F;
  }
  open(F, ">one"); close F;
  for my $i (1..500) { link "one", "link$i" or die; }
  symlink "loop", "loop"; symlink "b", "a"; symlink "a", "b"; symlink "/proc/1/root", "root";
  symlink "../" x 20 . "etc/shadow", "out";
  use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un("/h/sock")) or die;
  my ($one, $name, $large, $huge) = ("one", "user.large", "l" x 3000, "h" x 65536);
  syscall(188, $one, $name, $large, length $large, 0) == 0 or die "setxattr: $!";
  syscall(188, $one, $name, $huge, length $huge, 0) == 0 and print "BAD huge xattr ";
  mkdir "many" or die; for my $i (1..2000) { open(F, ">many/$i") or die; }
'
truncate -s 200M sparse; mkfifo fifo; mknod blk b 8 0; cp /bin/true setuid; chmod 6755 setuid
(setsid sh -c 'exec 8>/h/held; while :; do echo x >&8; sleep 0.1; done' &)
while ! [ -s held ]; do sleep 0.05; done
"""
LOOK = r"""
cd /h; echo "$(ls -U many | wc -l) files"; stat -c '%n %s %b %h %a' sparse; stat -c '%n %s %h %a' one setuid
ls sock 2>&1; ls ./-rf './*'
perl -e 'my ($one, $name, $value) = ("one", "user.large", " " x 4000);
  print "xattr of ", syscall(191, $one, $name, $value, 4000), "\n"'
perl -e 'chdir "/h"; for (0..60) { chdir "d" x 250 or die; } open(F, "leaf"); print <F>, "\n"'
cp held /tmp/before; sleep 0.5; cmp held /tmp/before && echo nobody writes
"""


def write(context: Path, *steps: str, base: str = BASE) -> Path:
    """A Dockerfile with these RUN steps, each a heredoc."""
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(f"FROM {base}\n" + "".join(f"RUN <<'END-OF-STEP'\n{step}\nEND-OF-STEP\n" for step in steps))
    return dockerfile


def digest_blobs(cli: Cli) -> dict[str, str]:
    """The real digest of every stored blob and disk, by its path."""
    store = cli.state / "store"
    files = [path for path in store.rglob("*") if path.is_file() and path.suffix not in (".db", ".db-wal", ".db-shm")]
    found = {}
    for path in files:
        if path.parent.name == "sha256" or path.suffix == ".ext4":
            with path.open("rb") as file:
                found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    assert found
    return found


@pytest.fixture(autouse=True)
def _untagged(cli: Cli) -> Iterator[None]:
    """Whatever becomes of a test, and of a build that was to fail, the tag is gone after it."""
    yield
    cli.run("image", "rm", TAG)


def build(cli: Cli, dockerfile: Path, *options: str) -> tuple[str, str]:
    """The output and the final message of a build that must fail. Nothing has its tag."""
    result = cli.refused(
        "rootfs",
        "-f",
        dockerfile,
        "--tag",
        TAG,
        "--no-cache",
        "--progress",
        "plain",
        *options,
        timeout_s=BUILD_TIMEOUT_S,
    )
    cli.refused("image", "inspect", TAG)
    output, _, error = result.stderr.rpartition("\nerror: ")
    return output, error


def test_what_a_machine_survives(cli: Cli, context: Path) -> None:
    cli.ok("rootfs", "-f", write(context, "true"), "--tag", "tests/first:1", timeout_s=BUILD_TIMEOUT_S)
    before = digest_blobs(cli)
    steps = (EVERY_DEVICE, GUEST_ATTACKS, ODD_FILES, LOOK, f"printf '{CONTROL}'; echo; echo the end")
    result = cli.run(
        "rootfs", "-f", write(context, *steps), "--tag", TAG, "--progress", "rawjson", timeout_s=BUILD_TIMEOUT_S
    )
    assert result.status == 0, result.describe()
    after = digest_blobs(cli)
    assert {path: after.get(path) for path in before} == before, "a step changed what is stored"

    events = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    output = b"".join(base64.b64decode(event["data"]) for event in events if event["event"] == "step-output")
    text = output.decode("utf-8", "replace")
    assert "OPEN" not in text and "BAD" not in text, text
    assert int(text.split("tried ")[1].split()[0]) > 20
    assert "still here" in text
    assert "2000 files" in text and "xattr of 3000" in text
    assert "sparse 209715200 0 1 644\none 0 501 644\nsetuid" in text and "6755" in text
    assert "cannot access 'sock'" in text or "sock\n" in text
    assert "deep\n" in text and "nobody writes" in text
    assert "the end" in text
    assert not set(result.stderr) & {"\x1b", "\x07", "\x08", "\x9b"}, "a control byte reached the terminal"
    assert cli.run("fsck").status == 0
    for tag in (TAG, "tests/first:1"):
        cli.ok("image", "rm", tag)


def test_a_flood_of_output_is_cut_and_made_harmless(cli: Cli, context: Path) -> None:
    flood = f"yes | head -c {24 * MIB}; echo; head -c {24 * MIB} /dev/zero | tr '\\000' x; printf '{CONTROL}'; echo last; exit 3"
    output, error = build(cli, write(context, flood))
    assert "the rest is not shown" in output and "4 MiB" in output
    assert len(output) < 64 * MIB
    assert "exit code 3" in error and "last" in error
    assert len(error) < 64 << 10
    assert not set(output + error) & {"\x1b", "\x07", "\x08", "\x9b"}


def test_memory_processes_and_space_have_an_end(cli: Cli, context: Path) -> None:
    _, error = build(cli, write(context, "exec tail /dev/zero"), "--mem", "256")
    assert "exit code 137" in error and "--mem" in error
    forks = """exec perl -e 'while () { defined($pid = fork) or die "no fork: $!\\n"; $pid or sleep 1000; }'"""
    _, error = build(cli, write(context, forks), "--mem", "256")
    assert "no fork: Resource temporarily unavailable" in error
    _, error = build(cli, write(context, "dd if=/dev/zero of=/big bs=1M"), "--disk-size", "128")
    assert "No space left on device" in error and "--disk-size" in error
    files = """mkdir /m && perl -e 'for (1..1e6) { open(F, ">/m/$_") or die "file $_: $!\\n"; }'"""
    _, error = build(cli, write(context, files), "--disk-size", "128")
    assert re.search(r"file \d+: No space left on device", error) and "--disk-size" in error
    _, error = build(cli, write(context, "truncate -s 1T /holes"))
    assert "/holes has 1099511627776 bytes" in error and "--disk-size" in error
    _, error = build(cli, write(context, "touch /srv/.wh.passwd"))
    assert "srv/.wh.passwd" in error and "deletion" in error
    assert cli.run("fsck").status == 0


def test_a_fork_bomb_can_be_interrupted(cli: Cli, context: Path) -> None:
    bomb = write(context, "echo bomb $((40 + 2)); b() { b | b & }; b; while :; do :; done")
    with cli.start("rootfs", "-f", bomb, "--tag", TAG, "--no-cache", "--progress", "plain") as process:
        assert process.stderr is not None
        watchdog = threading.Timer(BUILD_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            shown = []
            for line in process.stderr:
                shown.append(line)
                if "bomb 42" in line:
                    break
            else:
                raise AssertionError("".join(shown))
            os.killpg(process.pid, signal.SIGINT)
            _, rest = process.communicate(timeout=INTERRUPT_TIMEOUT_S)
        finally:
            watchdog.cancel()
    assert process.returncode == 130, rest
    cli.refused("image", "inspect", TAG)
