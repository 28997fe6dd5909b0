//! The JSON messages (`PROTOCOL.md`, sections 3 and 4). Requests refuse unknown keys, answers ignore them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// `boot`: the first frame of the push stream, from the guest.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct BootRequest {
    pub op: String,
    pub protocol: u32,
    pub version: String,
    pub kernel: String,
    pub boot_id: String,
}

/// The host's answer to `boot`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct BootReply {
    pub protocol: u32,
    /// Unix time in nanoseconds.
    pub clock_ns: u64,
    pub boot: BootDocument,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum BootKind {
    Run,
    Build,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum InitMode {
    Direct,
    System,
}

/// What the guest is to become (section 3.1).
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct BootDocument {
    pub id: String,
    pub kind: BootKind,
    pub init: InitMode,
    #[serde(default)]
    pub root: Option<Root>,
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    #[serde(default)]
    pub dns: Dns,
    #[serde(default)]
    pub mmds: Option<Mmds>,
    #[serde(default)]
    pub metadata: Option<Metadata>,
    #[serde(default = "default_stop_signal")]
    pub stop_signal: i32,
    #[serde(default = "default_true")]
    pub start_entrypoint: bool,
    #[serde(default)]
    pub tty: bool,
    /// Whether the entrypoint's input is open to those who attach.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the first one who attaches starts the entrypoint.
    #[serde(default)]
    pub await_attach: bool,
    #[serde(default)]
    pub volumes: Vec<String>,
    #[serde(default)]
    pub restart: Restart,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub health: Option<HealthCheck>,
}

/// A drive that holds an ext4 file system for a folder of the root.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Mount {
    pub drive: String,
    /// Absolute; made where it is missing.
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
    /// While it is empty it gets what the image has at `target`.
    #[serde(default)]
    pub seed: bool,
}

/// How the guest finds out whether its entrypoint is well.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct HealthCheck {
    pub argv: Vec<String>,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    /// After a life's beginning: failures do not count until a check has passed.
    pub start_period_ms: u64,
    /// In place of `interval_ms` in that time.
    pub start_interval_ms: u64,
    /// So many failures in a row are `unhealthy`.
    pub retries: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    Starting,
    Healthy,
    Unhealthy,
}

/// One check. `code`: -1 where it could not be started or took too long.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct HealthResult {
    pub code: i32,
    pub duration_ms: u64,
    pub output: String,
}

/// When the entrypoint is started again after its end.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    No,
    OnFailure,
    Always,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// How often at most, for `on-failure`.
    #[serde(default)]
    pub most: Option<u32>,
}

fn default_stop_signal() -> i32 {
    15
}

fn default_true() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RootMode {
    Overlay,
    Copy,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Root {
    pub mode: RootMode,
    pub lower: String,
    #[serde(default)]
    pub upper: Option<String>,
    /// Whether it is made read-only before the entrypoint is started.
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: String,
    /// `address/prefix length`, IPv4 and IPv6.
    #[serde(default)]
    pub addresses: Vec<String>,
    #[serde(default)]
    pub gateway: Option<String>,
    #[serde(default)]
    pub gateway6: Option<String>,
    #[serde(default)]
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Dns {
    #[serde(default)]
    pub nameservers: Vec<String>,
    #[serde(default)]
    pub search: Vec<String>,
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Mmds {
    pub address: String,
    pub interface: String,
}

/// The part of the metadata that vminit uses (section 3.2).
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub struct Metadata {
    #[serde(rename = "VMMID", default)]
    pub vmm_id: String,
    #[serde(default)]
    pub image_tag: String,
    #[serde(default)]
    pub local_hostname: String,
    /// A JSON text: [`Entrypoint`].
    #[serde(rename = "EntrypointJSON", default)]
    pub entrypoint_json: String,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub users: BTreeMap<String, MetadataUser>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct MetadataUser {
    #[serde(rename = "SSHKeys", default)]
    pub ssh_keys: String,
}

/// The image's entrypoint, as it stands in `EntrypointJSON`. Any field may be missing or null.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Entrypoint {
    pub cmd: Option<Vec<String>>,
    pub entry_point: Option<Vec<String>>,
    pub env: Option<BTreeMap<String, String>>,
    pub shell: Option<Vec<String>>,
    pub user: Option<String>,
    pub workdir: Option<String>,
}

impl Entrypoint {
    /// EntryPoint and Cmd together; empty if the image has neither.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = self.entry_point.clone().unwrap_or_default();
        argv.extend(self.cmd.clone().unwrap_or_default());
        argv
    }
}

/// `exec` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    pub op: String,
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub workdir: String,
    #[serde(default)]
    pub tty: bool,
    #[serde(default)]
    pub stdin: bool,
    /// It reads nothing, what it writes is lost, and nobody waits for it.
    #[serde(default)]
    pub detach: bool,
    #[serde(default = "default_rows")]
    pub rows: u16,
    #[serde(default = "default_cols")]
    pub cols: u16,
}

fn default_rows() -> u16 {
    24
}

fn default_cols() -> u16 {
    80
}

/// `attach` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    pub op: String,
    /// 0: the client has no terminal.
    #[serde(default)]
    pub rows: u16,
    #[serde(default)]
    pub cols: u16,
}

/// `attach`'s REPLY.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct AttachReply {
    pub tty: bool,
    pub stdin: bool,
}

/// `copy-in`, `copy-out` and `path-stat` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    pub op: String,
    pub path: String,
}

/// `stop` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    pub op: String,
    pub signal: i32,
    pub timeout_ms: u64,
}

/// `signal` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    pub op: String,
    pub signal: i32,
}

/// `restart-policy` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RestartRequest {
    pub op: String,
    pub policy: RestartPolicy,
    #[serde(default)]
    pub most: Option<u32>,
}

/// One process, of the answer to `processes`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid: u32,
    pub ppid: u32,
    pub user: String,
    /// One letter, as proc(5) has it.
    pub state: String,
    pub cpu_ms: u64,
    pub elapsed_ms: u64,
    pub memory_kib: u64,
    pub command: String,
}

/// `clock` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ClockRequest {
    pub op: String,
    pub clock_ns: u64,
}

/// `continue` on the control port.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ContinueRequest {
    pub op: String,
    pub clock_ns: u64,
}

/// `resume` on the control port: what a restored guest is from now on.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    pub op: String,
    pub clock_ns: u64,
    /// Random bytes of the host, in hexadecimal digits.
    pub seed: String,
    pub boot: BootDocument,
}

/// A request without arguments: `hello`, `pause-for-snapshot`, `poweroff`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct PlainRequest {
    pub op: String,
}

/// RESIZE.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Resize {
    pub rows: u16,
    pub cols: u16,
}

/// SIGNAL.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Signal {
    pub signal: i32,
}

/// EXIT.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub signal: Option<i32>,
}

/// EVENT on the push stream. A receiver keeps what it does not know as [`PushEvent::Other`].
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum PushEvent {
    Step {
        name: String,
    },
    Ready {
        uptime_ms: u64,
        entrypoint_pid: Option<u32>,
    },
    Failed {
        code: String,
        message: String,
    },
    /// The entrypoint ended so, and has been started again, for the `count`th time.
    Restart {
        count: u32,
        code: i32,
        signal: Option<i32>,
    },
    /// Without a result a life begins, and what was known is void.
    Health {
        status: HealthStatus,
        failing_streak: u32,
        result: Option<HealthResult>,
    },
    /// From the agent to the entrypoint's service: another restart policy from now on.
    Policy {
        restart: Restart,
    },
    #[serde(other)]
    Other,
}

/// The bytes of a message. Empty only if a map key were no text, which no type here can have.
pub fn to_json<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// The `op` of a request, if it has one.
pub fn op_of(request: &Value) -> Option<&str> {
    request.get("op").and_then(Value::as_str)
}
