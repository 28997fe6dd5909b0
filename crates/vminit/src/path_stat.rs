//! What stands at a path of the guest's root, and where it leads: for the host to decide what a copy means.

use crate::util::{refuse, Context};
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// The answer to `path-stat`. `real_path`: links followed, null where even the folder of `path` is missing;
/// `real_kind`: what stands there.
pub fn stat(path: &str) -> Result<Value, TaskError> {
    if !path.starts_with('/') {
        return refuse(ErrorCode::BadRequest, format!("{path:?} is no absolute path"));
    }
    let trimmed = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let found = look(rustix::fs::lstat(trimmed), path)?;
    let real = resolve(Path::new(trimmed), path)?;
    let there = match &real {
        Some(real) => look(rustix::fs::lstat(real), path)?,
        None => None,
    };
    let Some(real_path) = real.as_ref().map(|real| real.to_str()) else {
        return Ok(json!({"kind": kind_of(found), "size": 0, "real_path": null, "real_kind": "missing"}));
    };
    let Some(real_path) = real_path else {
        return refuse(ErrorCode::BadRequest, format!("{path} leads to a name that is no UTF-8"));
    };
    let size = there.map_or(0, |stat| stat.st_size);
    Ok(json!({"kind": kind_of(found), "size": size, "real_path": real_path, "real_kind": kind_of(there)}))
}

fn look(stat: rustix::io::Result<Stat>, path: &str) -> Result<Option<Stat>, TaskError> {
    match stat {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno).doing(format_args!("look at {path}")),
    }
}

fn kind_of(stat: Option<Stat>) -> &'static str {
    match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        None => "missing",
        Some(FileType::RegularFile) => "file",
        Some(FileType::Directory) => "directory",
        Some(FileType::Symlink) => "symlink",
        Some(_) => "other",
    }
}

/// The path without links. Of what is missing: its name in its folder's real path, if that is there.
fn resolve(path: &Path, shown: &str) -> Result<Option<PathBuf>, TaskError> {
    match std::fs::canonicalize(path) {
        Ok(real) => return Ok(Some(real)),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(error).doing(format_args!("look at {shown}")),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    match std::fs::canonicalize(parent) {
        Ok(real) if real.is_dir() => Ok(Some(real.join(name))),
        Ok(_) => Ok(None),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error).doing(format_args!("look at {shown}")),
    }
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_folders_links_and_what_is_missing() {
        let base = std::fs::canonicalize(std::env::temp_dir()).unwrap().join(format!("stat-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(base.join("d")).unwrap();
        std::fs::write(base.join("d/f"), "12345").unwrap();
        std::os::unix::fs::symlink("d/f", base.join("l")).unwrap();
        std::os::unix::fs::symlink("nowhere", base.join("dangling")).unwrap();
        let ask = |name: &str| stat(&format!("{}/{name}", base.display())).unwrap();
        let real = |name: &str| format!("{}/{name}", base.display());
        assert_eq!(ask("l"), json!({"kind": "symlink", "size": 5, "real_path": real("d/f"), "real_kind": "file"}));
        assert_eq!(ask("d/")["kind"], "directory");
        assert_eq!(ask("new")["real_path"], real("new"));
        assert_eq!(ask("new")["kind"], "missing");
        assert_eq!(ask("no/new")["real_path"], Value::Null);
        assert_eq!(ask("d/f/new")["real_path"], Value::Null);
        assert_eq!(ask("dangling")["real_kind"], "symlink");
        assert_eq!(stat("/").unwrap()["real_path"], "/");
        assert!(stat("relative").is_err());
        std::fs::remove_dir_all(&base).unwrap();
    }
}
