//! The requests of PROTOCOL.md section 5: their shapes and the checks that need no file system.

use firebuild_protocol::{ErrorCode, TaskError};
use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde_json::Value;

const MAX_STACK: usize = 256;
const MAX_NAME: usize = 32;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    #[serde(rename = "op")]
    _op: String,
    pub work: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    #[serde(rename = "op")]
    _op: String,
    pub layer: String,
    pub drive: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    #[serde(rename = "op")]
    _op: String,
    pub layer: String,
    #[serde(default)]
    pub stack: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    #[default]
    Default,
    None,
}

/// What stands in a step's tree for its time.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum StepMount {
    /// A directory or file of a stack's tree. What is written to it is lost.
    Bind {
        target: String,
        stack: Vec<String>,
        #[serde(default = "default_source")]
        source: String,
        #[serde(default = "default_true")]
        read_only: bool,
    },
    /// Memory; no limit: half of the machine's.
    Tmpfs {
        target: String,
        #[serde(default)]
        size_bytes: u64,
        #[serde(default)]
        read_only: bool,
    },
    /// A directory on a disk that outlives the machine.
    Cache {
        target: String,
        drive: String,
        #[serde(default)]
        read_only: bool,
        #[serde(default = "default_cache_mode")]
        mode: u32,
        #[serde(default)]
        uid: u32,
        #[serde(default)]
        gid: u32,
        #[serde(default)]
        seed: Option<Seed>,
        /// Without it what is written is lost with the step.
        #[serde(default = "default_true")]
        keep: bool,
    },
    /// Content that follows the request as DATA, as a file, as a variable, or both.
    Secret {
        #[serde(default)]
        target: Option<String>,
        #[serde(default)]
        env: Option<String>,
        #[serde(default = "default_secret_mode")]
        mode: u32,
        #[serde(default)]
        uid: u32,
        #[serde(default)]
        gid: u32,
    },
    /// A socket whose connections the host takes with ssh-accept, by this name.
    Ssh {
        target: String,
        socket: String,
        #[serde(default = "default_socket_mode")]
        mode: u32,
        #[serde(default)]
        uid: u32,
        #[serde(default)]
        gid: u32,
    },
}

/// Waits for a connection to a step's SSH socket.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshAccept {
    #[serde(rename = "op")]
    _op: String,
    pub socket: String,
}

/// What a cache holds at first: a directory of a stack's tree. With another `id` than last time it begins anew.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    pub id: String,
    pub stack: Vec<String>,
    pub source: String,
}

fn default_source() -> String {
    "/".to_owned()
}

fn default_true() -> bool {
    true
}

fn default_cache_mode() -> u32 {
    0o755
}

fn default_socket_mode() -> u32 {
    0o600
}

fn default_secret_mode() -> u32 {
    0o400
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    #[serde(rename = "op")]
    _op: String,
    pub layer: String,
    pub stack: Vec<String>,
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub workdir: String,
    #[serde(default)]
    pub network: Network,
    #[serde(default = "default_hostname")]
    pub hostname: String,
    #[serde(default)]
    pub mounts: Vec<StepMount>,
    #[serde(default)]
    pub tty: bool,
    #[serde(default)]
    pub stdin: bool,
    #[serde(default = "default_rows")]
    pub rows: u16,
    #[serde(default = "default_cols")]
    pub cols: u16,
    #[serde(default)]
    pub ca_bundle: Option<String>,
}

fn default_hostname() -> String {
    "buildkitsandbox".to_owned()
}

fn default_rows() -> u16 {
    24
}

fn default_cols() -> u16 {
    80
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    File,
    Directory,
    /// The entries of an archive that ADD unpacks: their owners and modes stay.
    Archive,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    pub name: String,
    pub kind: ItemKind,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    pub stack: Vec<String>,
    pub paths: Vec<String>,
    /// For each path, what of its directory is copied, with the directories above it (COPY --parents).
    #[serde(default)]
    pub include: Option<Vec<String>>,
    #[serde(default)]
    pub exclude: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    #[serde(rename = "op")]
    _op: String,
    pub layer: String,
    pub stack: Vec<String>,
    #[serde(default)]
    pub items: Option<Vec<Item>>,
    pub dest: String,
    #[serde(default)]
    pub dest_is_directory: bool,
    #[serde(default)]
    pub chown: Option<String>,
    #[serde(default)]
    pub chmod: Option<String>,
    /// The time of directories that are made or added to.
    #[serde(default)]
    pub mtime_s: Option<i64>,
    #[serde(default)]
    pub from: Option<From>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    #[serde(rename = "op")]
    _op: String,
    pub layer: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    #[serde(rename = "op")]
    _op: String,
    pub layer: String,
    #[serde(default)]
    pub mtime_max_s: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskApply {
    #[serde(rename = "op")]
    _op: String,
    pub drive: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskMerge {
    #[serde(rename = "op")]
    _op: String,
    pub stack: Vec<String>,
    pub drive: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    #[serde(rename = "op")]
    _op: String,
    pub stack: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stat {
    #[serde(rename = "op")]
    _op: String,
    pub stack: Vec<String>,
    pub path: String,
    #[serde(default)]
    pub read_bytes: u64,
    /// At most so many entries of a directory are told.
    #[serde(default)]
    pub list_entries: usize,
}

/// A request in its own shape; unknown keys are refused.
pub fn parse<T: DeserializeOwned>(request: &Value) -> Result<T, TaskError> {
    T::deserialize(request).map_err(|error| TaskError::new(ErrorCode::BadRequest, error.to_string()))
}

/// `[a-z0-9]{1,32}`: names become parts of paths and mount options.
pub fn check_layer(name: &str) -> Result<(), TaskError> {
    if is_plain(name, MAX_NAME) {
        return Ok(());
    }
    Err(bad(format!("{name:?} is no layer name")))
}

pub fn check_stack(stack: &[String]) -> Result<(), TaskError> {
    if stack.len() > MAX_STACK {
        return Err(TaskError::new(ErrorCode::Limit, format!("a stack of {} layers", stack.len())));
    }
    for (index, name) in stack.iter().enumerate() {
        check_layer(name)?;
        if stack.iter().skip(index + 1).any(|other| other == name) {
            return Err(bad(format!("layer {name} is twice in the stack")));
        }
    }
    Ok(())
}

/// A drive as the kernel names it (`vda`): a file name below the folder of devices.
pub fn check_drive(name: &str) -> Result<(), TaskError> {
    if is_plain(name, 16) {
        return Ok(());
    }
    Err(bad(format!("{name:?} is no drive")))
}

pub fn check_text(what: &str, text: &str) -> Result<(), TaskError> {
    if text.contains('\0') {
        return Err(bad(format!("{what} holds a zero byte")));
    }
    Ok(())
}

pub fn bad(message: impl Into<String>) -> TaskError {
    TaskError::new(ErrorCode::BadRequest, message)
}

fn is_plain(name: &str, most: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !name.is_empty() && name.len() <= most && name.bytes().all(allowed)
}
