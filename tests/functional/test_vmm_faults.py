"""A VMM that dies at each call, or answers with anything but an answer: a sentence that names the call, and nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_machines import Fake
from tests.support.fake_vmm import Script

# In the order in which they are made, for a machine in one network.
CALLS = (
    "PUT /machine-config", "PUT /boot-source", "PUT /drives/rootfs", "PUT /drives/upper", "PUT /network-interfaces/eth0",
    "PUT /vsock", "PUT /entropy", "PUT /mmds/config", "PUT /mmds", "PUT /actions",
)  # fmt: skip


@pytest.fixture
def fake(firebuild_cli: Cli, tmp_path: Path) -> Fake:
    return Fake(firebuild_cli, tmp_path)


def fail(fake: Fake, script: Script, *words: str, timeout_s: int = 20) -> None:
    result = fake.run("-d", "--name", "m", "--boot-timeout", str(timeout_s), script=script)
    assert result.status == 125, result.describe()
    for word in words:
        assert word in result.stderr, result.describe()
    assert "Traceback" not in result.stderr and "\x1b" not in result.stderr, result.describe()
    assert fake.cli.ok("ls", "-a", "-q") == ""
    assert not list((fake.cli.state / "machines").iterdir())


@pytest.mark.parametrize("network", ["none", "machines"])
def test_dies_at_a_call(fake: Fake, network: str) -> None:
    """At each, in a network where the call is of one."""
    for call in CALLS:
        if (network == "machines") != ("network" in call or "mmds" in call):
            continue
        result = fake.run("-d", "--name", "m", network=network, script=Script(answers={call: "die"}))
        assert result.status == 125, result.describe()
        assert f"the VMM closed its API's connection instead of answering {call}" in result.stderr, result.describe()
    assert fake.cli.ok("ls", "-a", "-q") == ""
    assert not list((fake.cli.state / "machines").iterdir())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("close", "closed its API's connection instead of answering PUT /vsock"),
        ("garbage", "the VMM's API failed at PUT /vsock: its answer is not HTTP"),
        ("not-json", "answered PUT /vsock with something that is not JSON"),
        ("503", "refused PUT /vsock with status 503: Too many?[2J open connections."),
        ("huge", "answered PUT /vsock with more than 1048576 bytes"),
    ],
)
def test_answers_that_are_none(fake: Fake, how: str, words: str) -> None:
    fail(fake, Script(answers={"PUT /vsock": how}), words)


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_an_answer_that_never_comes_ends_with_the_time_for_the_start(fake: Fake, how: str) -> None:
    fail(fake, Script(answers={"PUT /vsock": how}), "the VMM's API did not answer PUT /vsock in time", timeout_s=4)


def test_a_machine_that_runs_outlives_an_api_that_does_not_answer(fake: Fake) -> None:
    """Pausing asks the VMM, which stands still: an error, and the machine can be ended as ever."""
    fake.run("-d", "--name", "m", script=Script(answers={"PATCH /vm": "garbage"}))
    assert "failed at PATCH /vm: its answer is not HTTP" in fake.cli.refused("pause", "m").stderr
    assert fake.state("m") == "running"
    fake.cli.ok("kill", "m")


def test_the_calls_of_the_api_and_the_vmms_log_can_be_seen(fake: Fake) -> None:
    shown = fake.run("-d", "--name", "m", "-e", "PASSWORD=hunter2", "--log-firecracker-http-calls", network="machines")
    assert shown.status == 0, shown.describe()
    calls = [line for line in shown.stderr.splitlines() if line.startswith("firebuild.vmm.calls: ")]
    assert [call.split(" ", 3)[1:3] for call in calls] == [call.split(" ") for call in CALLS], shown.describe()
    assert '{"vcpu_count":1,"mem_size_mib":256' in calls[0] and ": 204 " in calls[0]
    assert "hunter2" not in shown.stderr
    assert fake.cli.ok("logs", "--vmm", "m") == "fake vmm: it runs\n"
    assert "does not go with --vmm" in fake.cli.refused("logs", "--vmm", "-f", "m").stderr
    assert "choose one" in fake.cli.refused("logs", "--vmm", "--console", "m").stderr
    fake.cli.ok("kill", "m")
    restarted = fake.cli.run("start", "m", environment=fake.environment(Script()))
    assert restarted.status == 0, restarted.describe()
    assert fake.cli.ok("logs", "--vmm", "m") == "fake vmm: it runs\n"
    fake.cli.ok("kill", "m")


def test_extras_reach_the_vmm_or_are_refused_before_anything_exists(fake: Fake, tmp_path: Path) -> None:
    template = tmp_path / "template.json"
    template.write_text('{"kvm_capabilities": ["!56"], "cpuid_modifiers": []}')
    given = ("--balloon", "64m", "--huge-pages", "2m", "--cpu-template")
    started = fake.run("-d", "--name", "m", "--log-firecracker-http-calls", *given, f"@{template}")
    assert started.status == 0, started.describe()
    for words in (
        'PUT /cpu-config {"kvm_capabilities":["!56"],"cpuid_modifiers":[]}: 204', '"huge_pages":"2M"}: 204',
        'PUT /balloon {"amount_mib":64,"deflate_on_oom":true,"stats_polling_interval_s":1,"free_page_reporting":true}: 204',
    ):  # fmt: skip
        assert words in started.stderr, started.describe()
    fake.cli.ok("kill", "m")
    old = Script(version="Firecracker v1.13.1")
    shown = fake.run("-d", "--name", "old", "--log-firecracker-http-calls", "--balloon", "0", script=old)
    assert shown.status == 0 and "PUT /balloon" in shown.stderr and "reporting" not in shown.stderr, shown.describe()
    fake.cli.ok("kill", "old")
    refused = fake.run("-d", "--huge-pages", "transparent", script=old)
    assert refused.status == 125 and "Firecracker 1.13.1 does not have it" in refused.stderr, refused.describe()
    for option, value, words in (
        ("--cpu-template", "T9", "there is no template `T9`"), ("--cpu-template", "T2", "which has no CPU templates"),
        ("--cpu-template", "@/nonexistent", "cannot be read: No such file"), ("--huge-pages", "2m", "has no pages of 2 MiB"),
        ("--huge-pages", "1g", "not a kind of pages"), ("--balloon", "256m", "not more than 256 MiB"),
        ("--cpu-template", f"@{fake.folder / 'fake-vmm'}", "is not JSON"),
    ):  # fmt: skip
        result = fake.cli.run("run", "--from", "test/app:1", "--network", "none", "-d", option, value)
        assert result.status == 125 and words in result.stderr, result.describe()
    assert len(fake.cli.ok("ls", "-a", "-q").split()) == 2
