//! The supervisor's configuration: one JSON file, checked whole before anything is started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

/// A Unix socket path has room for 107 bytes and a terminating zero (unix(7), `sun_path`).
const MAX_SOCKET_PATH: usize = 107;
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MIN_LOG_BYTES: u64 = 4096;

/// The program to start and where.
#[derive(Debug)]
pub struct VmmConfig {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub netns: Option<PathBuf>,
    pub cwd: PathBuf,
    /// The folders of control groups that it is started in.
    pub cgroups: Vec<PathBuf>,
    pub jail: Option<JailConfig>,
}

/// What a jailer is given: a mount namespace of its own in which files of the host are in the jail, and nowhere else.
#[derive(Debug)]
pub struct JailConfig {
    /// The folder that becomes the VMM's root: programs and devices in it may be used, whatever it lies on.
    pub root: PathBuf,
    pub mounts: Vec<MountConfig>,
    /// Start it in a network namespace of its own, with nothing in it.
    pub new_netns: bool,
}

/// A file that is bound on another.
#[derive(Debug)]
pub struct MountConfig {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// A log file that is rotated to `PATH.1` when it reaches `max_bytes`.
#[derive(Debug)]
pub struct LogConfig {
    pub path: PathBuf,
    pub max_bytes: u64,
}

/// Everything the supervisor is told.
#[derive(Debug)]
pub struct Config {
    pub id: String,
    pub vmm: VmmConfig,
    pub push_socket: PathBuf,
    pub push_socket_owner: Option<(u32, u32)>,
    pub control_socket: PathBuf,
    pub boot_document: PathBuf,
    pub console_log: LogConfig,
    pub output_log: LogConfig,
    pub vmm_pid_file: PathBuf,
    pub exit_record: PathBuf,
    pub on_exit: Vec<String>,
    /// Told what has changed, with `--restarts COUNT` or `--health STATUS` after it, or both; empty: nobody is told.
    pub on_change: Vec<String>,
    pub boot_timeout: Option<Duration>,
}

/// Reads and checks the configuration file. The error is one line for a person.
pub fn load_config(path: &Path) -> Result<Config, String> {
    let named = |reason: String| format!("configuration {}: {reason}", path.display());
    let size = std::fs::metadata(path).map_err(|error| named(error.to_string()))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(named(format!("larger than {MAX_CONFIG_BYTES} bytes")));
    }
    let text = std::fs::read(path).map_err(|error| named(error.to_string()))?;
    let value: Value = serde_json::from_slice(&text).map_err(|error| named(error.to_string()))?;
    parse_config(&value).map_err(named)
}

fn parse_config(value: &Value) -> Result<Config, String> {
    let top = Fields::of(value, "")?;
    top.only(&[
        "id",
        "vmm",
        "push_socket",
        "push_socket_owner",
        "control_socket",
        "boot_document",
        "console_log",
        "output_log",
        "vmm_pid_file",
        "exit_record",
        "on_exit",
        "on_change",
        "boot_timeout_ms",
    ])?;
    let vmm = Fields::of(top.get("vmm")?, "vmm.")?;
    vmm.only(&["argv", "env", "netns", "cwd", "cgroups", "jail"])?;
    let argv = vmm.strings("argv")?;
    if argv.is_empty() {
        return Err("vmm.argv is empty".to_owned());
    }
    Ok(Config {
        id: top.string("id")?,
        vmm: VmmConfig {
            argv,
            env: parse_env(&vmm.strings("env")?)?,
            netns: vmm.optional_string("netns")?.map(PathBuf::from),
            cwd: PathBuf::from(vmm.string("cwd")?),
            cgroups: match vmm.present("cgroups") {
                Some(_) => vmm.strings("cgroups")?.into_iter().map(PathBuf::from).collect(),
                None => Vec::new(),
            },
            jail: vmm.present("jail").map(parse_jail).transpose()?,
        },
        push_socket: PathBuf::from(top.string("push_socket")?),
        push_socket_owner: top.owner("push_socket_owner")?,
        control_socket: top.socket_path("control_socket")?,
        boot_document: PathBuf::from(top.string("boot_document")?),
        console_log: parse_log(top.get("console_log")?, "console_log.")?,
        output_log: parse_log(top.get("output_log")?, "output_log.")?,
        vmm_pid_file: PathBuf::from(top.string("vmm_pid_file")?),
        exit_record: PathBuf::from(top.string("exit_record")?),
        on_exit: top.strings("on_exit")?,
        on_change: if top.object.contains_key("on_change") { top.strings("on_change")? } else { Vec::new() },
        boot_timeout: top.optional_u64("boot_timeout_ms")?.map(Duration::from_millis),
    })
}

fn parse_jail(value: &Value) -> Result<JailConfig, String> {
    let fields = Fields::of(value, "vmm.jail.")?;
    fields.only(&["root", "mounts", "new_netns"])?;
    let mounts = fields.get("mounts")?.as_array().ok_or_else(|| "vmm.jail.mounts is not a list".to_owned())?;
    Ok(JailConfig {
        root: PathBuf::from(fields.string("root")?),
        mounts: mounts.iter().map(parse_mount).collect::<Result<_, _>>()?,
        new_netns: fields.boolean("new_netns")?,
    })
}

fn parse_mount(value: &Value) -> Result<MountConfig, String> {
    let fields = Fields::of(value, "vmm.jail.mounts.")?;
    fields.only(&["source", "target", "read_only"])?;
    Ok(MountConfig {
        source: PathBuf::from(fields.string("source")?),
        target: PathBuf::from(fields.string("target")?),
        read_only: fields.boolean("read_only")?,
    })
}

fn parse_log(value: &Value, prefix: &str) -> Result<LogConfig, String> {
    let fields = Fields::of(value, prefix)?;
    fields.only(&["path", "max_bytes"])?;
    let max_bytes = fields.optional_u64("max_bytes")?.ok_or_else(|| format!("{prefix}max_bytes is missing"))?;
    if max_bytes < MIN_LOG_BYTES {
        return Err(format!("{prefix}max_bytes is below {MIN_LOG_BYTES}"));
    }
    Ok(LogConfig { path: PathBuf::from(fields.string("path")?), max_bytes })
}

fn parse_env(entries: &[String]) -> Result<Vec<(String, String)>, String> {
    entries
        .iter()
        .map(|entry| match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("vmm.env: {entry:?} is not NAME=VALUE")),
        })
        .collect()
}

/// A JSON object together with the prefix that names its keys in messages.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    prefix: String,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value, prefix: &str) -> Result<Self, String> {
        match value {
            Value::Object(object) => Ok(Self { object, prefix: prefix.to_owned() }),
            _ => Err(format!("{prefix}: not an object")),
        }
    }

    fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.object.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(format!("unknown key {}{key}", self.prefix)),
            None => Ok(()),
        }
    }

    fn get(&self, key: &str) -> Result<&'a Value, String> {
        self.object.get(key).ok_or_else(|| format!("{}{key} is missing", self.prefix))
    }

    fn present(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn string(&self, key: &str) -> Result<String, String> {
        self.checked_string(self.get(key)?, key)
    }

    fn optional_string(&self, key: &str) -> Result<Option<String>, String> {
        self.present(key).map(|value| self.checked_string(value, key)).transpose()
    }

    fn checked_string(&self, value: &Value, key: &str) -> Result<String, String> {
        match value.as_str() {
            Some(text) if text.contains('\0') => Err(format!("{}{key} holds a zero byte", self.prefix)),
            Some(text) if !text.is_empty() => Ok(text.to_owned()),
            _ => Err(format!("{}{key} is not a text", self.prefix)),
        }
    }

    fn strings(&self, key: &str) -> Result<Vec<String>, String> {
        let wrong = || format!("{}{key} is not a list of texts", self.prefix);
        let list = self.get(key)?.as_array().ok_or_else(wrong)?;
        list.iter()
            .map(|item| match item.as_str() {
                Some(text) if !text.contains('\0') => Ok(text.to_owned()),
                _ => Err(wrong()),
            })
            .collect()
    }

    fn boolean(&self, key: &str) -> Result<bool, String> {
        self.get(key)?.as_bool().ok_or_else(|| format!("{}{key} is not true or false", self.prefix))
    }

    fn optional_u64(&self, key: &str) -> Result<Option<u64>, String> {
        self.present(key)
            .map(|value| value.as_u64().ok_or_else(|| format!("{}{key} is not a whole number", self.prefix)))
            .transpose()
    }

    fn socket_path(&self, key: &str) -> Result<PathBuf, String> {
        let text = self.string(key)?;
        if text.len() > MAX_SOCKET_PATH {
            return Err(format!(
                "{}{key} has {} bytes, a socket path may have {MAX_SOCKET_PATH}",
                self.prefix,
                text.len()
            ));
        }
        Ok(PathBuf::from(text))
    }

    fn owner(&self, key: &str) -> Result<Option<(u32, u32)>, String> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        let number = |item: &Value| item.as_u64().and_then(|number| u32::try_from(number).ok());
        match value.as_array().map(Vec::as_slice) {
            Some([uid, gid]) => match (number(uid), number(gid)) {
                (Some(uid), Some(gid)) => Ok(Some((uid, gid))),
                _ => Err(format!("{}{key} is not [uid, gid]", self.prefix)),
            },
            _ => Err(format!("{}{key} is not [uid, gid]", self.prefix)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_config;
    use serde_json::{json, Value};

    fn good() -> Value {
        json!({
            "id": "m1",
            "vmm": {"argv": ["/bin/true"], "env": ["A=b=c"], "netns": null, "cwd": "/"},
            "push_socket": "/run/p", "control_socket": "/run/c", "boot_document": "/run/b",
            "console_log": {"path": "/run/l", "max_bytes": 65536},
            "output_log": {"path": "/run/o", "max_bytes": 65536},
            "vmm_pid_file": "/run/pid", "exit_record": "/run/x", "on_exit": [], "boot_timeout_ms": 100,
        })
    }

    #[test]
    fn a_good_configuration() {
        let config = parse_config(&good()).expect("parses");
        assert_eq!(config.vmm.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(config.boot_timeout.map(|time| time.as_millis()), Some(100));
    }

    #[test]
    fn bad_configurations_name_the_key() {
        let long = "/".repeat(108);
        let cases = [
            ("/vmm/argv", json!([]), "vmm.argv"),
            ("/vmm/env", json!(["=x"]), "vmm.env"),
            ("/control_socket", json!(long), "107"),
            ("/vmm/cgroups", json!("/x"), "vmm.cgroups"),
            ("/vmm/jail", json!({"root": "/r", "mounts": [{"source": "/a"}], "new_netns": true}), "vmm.jail.mounts."),
            ("/push_socket_owner", json!([1]), "push_socket_owner"),
            ("/console_log", json!({"path": "/x", "max_bytes": 1}), "max_bytes"),
            ("/console_log", json!({"path": "/x", "max_bytes": 9999, "y": 1}), "y"),
            ("/boot_timeout_ms", json!(-1), "boot_timeout_ms"),
            ("/id", json!("a\0b"), "id"),
        ];
        for (pointer, value, expected) in cases {
            let mut config = good();
            match config.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => {
                    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
                    let object = config.pointer_mut(parent).and_then(Value::as_object_mut).expect("object");
                    object.insert(key.to_owned(), value);
                }
            }
            let message = parse_config(&config).expect_err("refused");
            assert!(message.contains(expected), "{pointer}: {message}");
        }
    }
}
