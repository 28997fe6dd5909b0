//! Whether a boot document can be carried out: checked whole before anything is done.

use crate::util::refuse;
use firebuild_protocol::message::{BootDocument, BootKind, HealthCheck, InitMode, Interface, RootMode};
use firebuild_protocol::{ErrorCode, TaskError};

/// Refuses what this vminit does not serve and names that could be more than names.
pub fn check(document: &BootDocument) -> Result<(), TaskError> {
    if document.init == InitMode::System && document.kind == BootKind::Build {
        return bad("a build machine has no init of its own".to_owned());
    }
    if document.init == InitMode::System && document.root.as_ref().is_some_and(|root| root.read_only) {
        return bad("an init needs a root that it can write to".to_owned());
    }
    if !(1..=64).contains(&document.stop_signal) {
        return bad(format!("stop_signal {} is no signal", document.stop_signal));
    }
    check_root(document)?;
    for mount in &document.mounts {
        check_drive(&mount.drive)?;
        check_target(&mount.target)?;
    }
    if let Some(health) = &document.health {
        check_health(health)?;
    }
    for interface in &document.interfaces {
        check_interface(interface)?;
    }
    if document.kind == BootKind::Run && document.mmds.is_none() && document.metadata.is_none() {
        return bad("neither mmds nor metadata".to_owned());
    }
    Ok(())
}

fn check_root(document: &BootDocument) -> Result<(), TaskError> {
    match (document.kind, &document.root) {
        (BootKind::Build, None) => Ok(()),
        (BootKind::Build, Some(_)) => bad("a build machine has no root".to_owned()),
        (BootKind::Run, None) => bad("a machine that runs needs a root".to_owned()),
        (BootKind::Run, Some(root)) => match (root.mode, &root.upper) {
            (RootMode::Overlay, Some(upper)) if upper == &root.lower => bad("lower and upper are one drive".to_owned()),
            (RootMode::Overlay, Some(upper)) => check_drive(&root.lower).and_then(|()| check_drive(upper)),
            (RootMode::Overlay, None) => bad("root mode \"overlay\" needs an upper drive".to_owned()),
            (RootMode::Copy, _) => check_drive(&root.lower),
        },
    }
}

fn check_health(health: &HealthCheck) -> Result<(), TaskError> {
    let times = [health.interval_ms, health.timeout_ms, health.start_interval_ms];
    if health.argv.is_empty() || health.retries == 0 || times.contains(&0) {
        return bad("a health check without a program, a time or retries".to_owned());
    }
    Ok(())
}

/// A kernel's name of a block device: `vda`.
pub fn check_drive(name: &str) -> Result<(), TaskError> {
    let is_name = (1..=31).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if is_name {
        Ok(())
    } else {
        bad(format!("{name:?} is no drive name"))
    }
}

/// Where a drive may be mounted: not over what the machine itself stands on.
fn check_target(target: &str) -> Result<(), TaskError> {
    const OWN: [&str; 3] = ["proc", "sys", "dev"];
    let mut parts = target.split('/');
    let is_clean = parts.next().is_some()
        && target.starts_with('/')
        && target.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
    if is_clean && !parts.next().is_some_and(|first| OWN.contains(&first)) {
        Ok(())
    } else {
        bad(format!("{target:?} is no folder to mount a drive on"))
    }
}

fn check_interface(interface: &Interface) -> Result<(), TaskError> {
    let name = &interface.name;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let is_name = (1..=15).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != "..";
    if !is_name || name == "lo" {
        return bad(format!("{name:?} is no interface name"));
    }
    Ok(())
}

fn bad(message: String) -> Result<(), TaskError> {
    refuse(ErrorCode::BadRequest, format!("boot document: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for good in ["/data", "/var/lib/x", "/devices"] {
            check_target(good).unwrap();
        }
        for wrong in ["", "/", "data", "/a/../b", "/a//b", "/a/", "/dev", "/proc/x"] {
            assert!(check_target(wrong).is_err(), "{wrong}");
        }
    }

    fn document(text: &str) -> Result<(), TaskError> {
        check(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn the_example_of_the_protocol_passes() {
        let text = include_str!("../../../protocol/PROTOCOL.md");
        let start = text.find("```json\n").unwrap() + 8;
        let end = start + text[start..].find("```").unwrap();
        document(&text[start..end]).unwrap();
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused() {
        let metadata = r#""metadata":{}"#;
        for (text, word) in [
            (r#""kind":"build","init":"system""#, "no init"),
            (r#""kind":"run","init":"system","root":{"mode":"copy","lower":"vda","read_only":true}"#, "write to"),
            (r#""kind":"run","init":"direct","root":null"#, "needs a root"),
            (r#""kind":"build","init":"direct","root":{"mode":"copy","lower":"vda"}"#, "no root"),
            (r#""kind":"run","init":"direct","root":{"mode":"overlay","lower":"vda"}"#, "upper"),
            (r#""kind":"run","init":"direct","root":{"mode":"overlay","lower":"vda","upper":"vda"}"#, "one drive"),
            (r#""kind":"run","init":"direct","root":{"mode":"copy","lower":"../sda"}"#, "drive name"),
            (r#""kind":"build","init":"direct","stop_signal":0"#, "signal"),
            (r#""kind":"build","init":"direct","interfaces":[{"name":"a/b","mac":"x"}]"#, "interface name"),
            (
                r#""kind":"build","init":"direct","health":{"argv":["x"],"interval_ms":0,"timeout_ms":1,
                "start_period_ms":0,"start_interval_ms":1,"retries":1}"#,
                "health check",
            ),
        ] {
            let error = document(&format!(r#"{{"id":"x",{text},{metadata}}}"#)).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(document(r#"{"id":"x","kind":"run","init":"direct","root":{"mode":"copy","lower":"vda"}}"#).is_err());
        document(r#"{"id":"x","kind":"build","init":"direct"}"#).unwrap();
    }
}
