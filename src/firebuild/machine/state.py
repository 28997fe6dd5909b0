"""The records of machines in the database: intent first, removed last, found by id, unique prefix or name."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING

import msgspec

from firebuild.errors import ConflictError, NameTakenError, NotFoundError, StoreError
from firebuild.host.identity import ProcessIdentity, get_boot_id, is_alive
from firebuild.machine.happenings import note_machine, note_transition
from firebuild.machine.spec import MachineSpec
from firebuild.names import MachineId, PortMapping
from firebuild.store.database import Database

if TYPE_CHECKING:
    import sqlite3


class State(enum.StrEnum):
    """The states of a machine: created → starting → running ⇄ paused → stopping → stopped; failed; lost."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"


ENDED = frozenset((State.STOPPED, State.FAILED, State.LOST))
HOST_REBOOT = "host reboot"


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a machine beyond its spec. Times are Unix times in nanoseconds; `exit_code`: the entrypoint's.

    `owner`: the process that the machine ends with; None once it is released. `boot_id`: the host's, when the machine was
    started. `life`: how often it was started before.
    `ports`: as they are published, with the host ports that were chosen.
    `holder`: the command that holds it still for a snapshot: if that has died, whoever repairs lets it go on.
    `restarts`: how often it was started again, known when the machine has ended.
    `cgroups`: the folders of its control group. `uid`: the user and group that its jailed VMM runs as; `owners`: what the files
    that were given to it had before: user, group and mode.
    """

    owner: ProcessIdentity | None = None
    supervisor: ProcessIdentity | None = None
    vmm: ProcessIdentity | None = None
    started_at_ns: int | None = None
    ready_at_ns: int | None = None
    ended_at_ns: int | None = None
    exit_code: int | None = None
    reason: str | None = None
    restarts: int = 0
    holder: ProcessIdentity | None = None
    addresses: list[str] = []
    mac: str | None = None
    ports: list[PortMapping] = []
    lease: str | None = None
    boot_id: str | None = None
    life: int = 0
    cgroups: list[str] = []
    uid: int | None = None
    owners: dict[str, tuple[int, int, int]] = {}


class MachineRecord(msgspec.Struct, frozen=True):
    """One machine as the database knows it."""

    spec: MachineSpec
    state: State
    progress: Progress
    created_at_ns: int
    told_health: str | None = None

    @property
    def health(self) -> str | None:
        """starting, healthy or unhealthy; None where it does not run or nothing is checked."""
        if self.spec.health is None or self.effective_state is not State.RUNNING:
            return None
        return self.told_health or "starting"

    @property
    def alive(self) -> bool:
        """Whether its supervisor still runs."""
        return self.progress.supervisor is not None and not self.rebooted and is_alive(self.progress.supervisor)

    @property
    def rebooted(self) -> bool:
        """Whether the host was booted anew since the machine was started: none of its processes can live."""
        return self.progress.boot_id is not None and self.progress.boot_id != get_boot_id()

    @property
    def ports(self) -> list[PortMapping]:
        """The published ports, with the host ports that were chosen for it if it has been started."""
        return self.progress.ports or self.spec.ports

    @property
    def orphaned(self) -> bool:
        """Whether it was to end with its owner, and that is gone: its supervisor ends it and cleans up."""
        return self.progress.owner is not None and not is_alive(self.progress.owner)

    @property
    def removable(self) -> bool:
        """Whether it is to be removed once it has ended, and nobody who would do that lives."""
        remover = self.spec.remover
        return self.spec.auto_remove or (remover is not None and not is_alive(remover))

    @property
    def effective_state(self) -> State:
        """The state, corrected by what is seen: a machine that should run and whose supervisor is gone is lost, or stopped
        with its host."""
        if self.state in (State.RUNNING, State.PAUSED, State.STOPPING) and not self.alive:
            return State.STOPPED if self.rebooted else State.LOST
        return self.state

    @property
    def reason(self) -> str | None:
        """Why it ended, also where nobody has noted it yet."""
        unseen = self.rebooted and self.state not in ENDED
        return HOST_REBOOT if unseen else self.progress.reason


_COLUMNS = "spec, state, record, created_at_ns, health"
_SPECS = msgspec.json.Decoder(MachineSpec)
_PROGRESS = msgspec.json.Decoder(Progress)


class MachineRecords:
    """The machines table. Raises ConflictError, NotFoundError, StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def insert(self, spec: MachineSpec, progress: Progress) -> MachineRecord:
        """Record the intent to have this machine. Raises NameTakenError."""
        now = time.time_ns()
        columns = (spec.id, spec.name, spec.kind, State.CREATED, _encode(spec), _encode(progress), now, now)
        try:
            with self._database.transaction():
                self._database.execute(
                    "INSERT INTO machines (id, name, kind, state, spec, record, created_at_ns, updated_at_ns)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    columns,
                )
                note_machine(self._database, spec, "created")
        except ConflictError:
            raise self._taken(spec.name) from None
        return MachineRecord(spec=spec, state=State.CREATED, progress=progress, created_at_ns=now)

    def change_spec(self, spec: MachineSpec) -> None:
        """Record a machine's changed spec, which may have a new name. Raises NameTakenError."""
        try:
            with self._database.transaction():
                before = self._database.query("SELECT name FROM machines WHERE id = ?", (spec.id,))
                old_name = before[0][0] if before else None
                self._database.execute(
                    "UPDATE machines SET name = ?, spec = ?, updated_at_ns = ? WHERE id = ?",
                    (spec.name, _encode(spec), time.time_ns(), spec.id),
                )
                if old_name != spec.name:
                    note_machine(self._database, spec, "renamed", old_name=old_name)
                else:
                    note_machine(self._database, spec, "updated")
        except ConflictError:
            raise self._taken(spec.name) from None

    def _taken(self, name: str) -> NameTakenError:
        owner = self.find(name)
        by = f" by the machine {owner.spec.id} ({owner.effective_state})" if owner else ""
        return NameTakenError(
            f"the name `{name}` is taken{by}", hint=f"choose another name, or remove it: firebuild rm {name}"
        )

    def update(self, machine_id: MachineId, state: State, progress: Progress) -> None:
        """Record a machine's state."""
        # The health of an earlier life says nothing.
        forget = ", health = NULL" if state is State.STARTING else ""
        with self._database.transaction():
            before = self._find_before(machine_id)
            self._database.execute(
                f"UPDATE machines SET state = ?, record = ?, updated_at_ns = ?{forget} WHERE id = ?",
                (state, _encode(progress), time.time_ns(), machine_id),
            )
            if before is not None:
                note_transition(self._database, before.spec, before.state, state, progress)

    def note_told(self, machine_id: MachineId, *, health: str | None, restarts: int | None) -> None:
        """Note what the guest says of itself, where it is new. Nobody's lock is needed: nothing else is changed."""
        with self._database.transaction():
            before = self._find_before(machine_id)
            if before is None:
                return
            if restarts:
                note_machine(self._database, before.spec, "restarted", restarts=restarts)
            if health is not None and health != before.told_health:
                self._database.execute("UPDATE machines SET health = ? WHERE id = ?", (health, machine_id))
                note_machine(self._database, before.spec, "health", health=health)

    def delete(self, machine_id: MachineId) -> None:
        """Forget a machine: last, when nothing of it is left."""
        with self._database.transaction():
            before = self._find_before(machine_id)
            self._database.execute("DELETE FROM machines WHERE id = ?", (machine_id,))
            if before is not None:
                note_machine(self._database, before.spec, "removed")

    def _find_before(self, machine_id: MachineId) -> MachineRecord | None:
        rows = self._database.query(f"SELECT {_COLUMNS} FROM machines WHERE id = ?", (machine_id,))
        return _decode(rows[0]) if rows else None

    def list_all(self, kind: str | None = "run", *, ended_too: bool = True) -> list[MachineRecord]:
        """All machines of a kind (None: of every kind), oldest first. Without `ended_too` only those that run, or should."""
        tests: dict[str, tuple[str, ...]] = {} if kind is None else {"kind = ?": (kind,)}
        if not ended_too:
            tests["state NOT IN (?, ?)"] = (State.STOPPED, State.FAILED)
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        parameters = tuple(value for values in tests.values() for value in values)
        rows = self._database.query(f"SELECT {_COLUMNS} FROM machines{where} ORDER BY created_at_ns", parameters)
        return [_decode(row) for row in rows]

    def find(self, text: str) -> MachineRecord | None:
        """The machine with this id, name, or unique id prefix. Raises ConflictError where a prefix fits several."""
        rows = self._database.query(f"SELECT {_COLUMNS} FROM machines WHERE id = ? OR name = ?", (text, text))
        if not rows and text.isalnum():
            rows = self._database.query(
                f"SELECT {_COLUMNS} FROM machines WHERE kind = 'run' AND substr(id, 1, ?) = ? LIMIT 2",
                (len(text), text),
            )
            if len(rows) > 1:
                raise ConflictError(f"`{text}` is the beginning of several machine ids", hint="write more of it")
        return _decode(rows[0]) if rows else None

    def get(self, text: str) -> MachineRecord:
        """As find; raises NotFoundError with the nearest names."""
        record = self.find(text) if text else None
        if record is None:
            names = [other.spec.name for other in self.list_all()]
            import difflib

            near = difflib.get_close_matches(text, names, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "list them with `firebuild ls -a`"
            raise NotFoundError(f"there is no machine `{text}`", hint=hint)
        return record


def _encode(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()


def _decode(row: sqlite3.Row) -> MachineRecord:
    spec, state, progress, created_at_ns, health = tuple(row)
    try:
        return MachineRecord(
            spec=_SPECS.decode(str(spec)),
            state=State(str(state)),
            progress=_PROGRESS.decode(str(progress)),
            created_at_ns=int(str(created_at_ns)),
            told_health=None if health is None else str(health),
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise StoreError(
            f"the record of the machine {_name_in(str(spec))} in the database does not parse: {error}",
            hint="use the firebuild that wrote it; or move the database away: `firebuild purge` then ends what runs",
        ) from error


def _name_in(spec: str) -> str:
    """The name in a record that may be damaged in any way."""
    try:
        return str(msgspec.json.decode(spec)["name"])[:64]
    except (msgspec.DecodeError, LookupError, TypeError):
        return "whose specification is damaged"
