//! From what is asked for to a command that can be started: user, environment, directory, program.

use crate::files::{ensure_directory, read_or_empty};
use crate::metadata::Profile;
use crate::sys::{ChildSetup, Program};
use crate::util::refuse;
use firebuild_protocol::users::{resolve, Identity};
use firebuild_protocol::{ErrorCode, TaskError};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MOST_PASSWD: u64 = 4 << 20;

/// What is asked for. Empty `user` and `workdir`: the entrypoint's.
#[derive(Debug, Default)]
pub struct Launch<'a> {
    pub argv: &'a [String],
    /// `K=V`, over all else.
    pub env: &'a [String],
    pub user: &'a str,
    pub workdir: &'a str,
    pub tty: bool,
    /// Make the directory where it is missing, as Docker does for an image's own.
    pub make_workdir: bool,
}

/// Find everything out and make the command. Errors: `no-such-user`, `no-such-directory`, `not-found`,
/// `not-executable`, `bad-request`.
pub fn prepare(profile: &Profile, launch: &Launch<'_>) -> Result<(Command, ChildSetup), TaskError> {
    let program = match launch.argv.first() {
        Some(program) if !program.is_empty() => program,
        _ => return refuse(ErrorCode::BadRequest, "no program to run"),
    };
    let identity = find_identity(profile, launch.user)?;
    let workdir = find_workdir(profile, launch)?;
    let env = plan_environment(profile, &identity, launch)?;
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
    let found = find_program(program, path, Path::new(&workdir))?;
    let argv = launch.argv.iter().map(|arg| to_c(arg.as_bytes())).collect::<Result<_, _>>()?;
    let env = env.iter().map(|(name, value)| to_c(format!("{name}={value}").as_bytes()));
    let env = env.collect::<Result<_, _>>()?;
    let setup = ChildSetup {
        workdir: Some(to_c(workdir.as_bytes())?),
        program: Some(Program::new(to_c(found.as_os_str().as_bytes())?, argv, env)),
        identity: Some((identity.uid, identity.gid, identity.groups)),
        ..ChildSetup::default()
    };
    Ok((Command::new(found), setup))
}

fn to_c(text: &[u8]) -> Result<CString, TaskError> {
    CString::new(text).map_err(|_| TaskError::new(ErrorCode::BadRequest, "an argument or a name holds a zero byte"))
}

fn find_identity(profile: &Profile, user: &str) -> Result<Identity, TaskError> {
    let user = if user.is_empty() { profile.entrypoint.user.as_deref().unwrap_or_default() } else { user };
    let passwd = read_or_empty("/etc/passwd", MOST_PASSWD)?;
    let group = read_or_empty("/etc/group", MOST_PASSWD)?;
    resolve(user, &passwd, &group).map_err(|message| TaskError::new(ErrorCode::NoSuchUser, message))
}

/// Make the entrypoint's directory where it is missing, while that can be done.
pub fn make_workdir(profile: &Profile) -> Result<(), TaskError> {
    find_workdir(profile, &Launch { make_workdir: true, ..Launch::default() }).map(|_| ())
}

fn find_workdir(profile: &Profile, launch: &Launch<'_>) -> Result<String, TaskError> {
    let own = profile.entrypoint.workdir.as_deref().unwrap_or_default();
    let asked = if launch.workdir.is_empty() { own } else { launch.workdir };
    // A relative directory is one of the root's: `WORKDIR app` in an image without an earlier one.
    let workdir = if asked.starts_with('/') { asked.to_owned() } else { format!("/{asked}") };
    if launch.make_workdir {
        ensure_directory(&workdir)?;
    }
    match std::fs::metadata(&workdir) {
        Ok(found) if found.is_dir() => Ok(workdir),
        Ok(_) => refuse(ErrorCode::NotADirectory, format!("{workdir} is not a directory")),
        Err(_) => refuse(ErrorCode::NoSuchDirectory, format!("no such directory: {workdir}")),
    }
}

/// Defaults, then the image's, then the run's, then this launch's: later ones win.
fn plan_environment(
    profile: &Profile,
    identity: &Identity,
    launch: &Launch<'_>,
) -> Result<Vec<(String, String)>, TaskError> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    set("HOME", &identity.home);
    if !profile.metadata.local_hostname.is_empty() {
        set("HOSTNAME", &profile.metadata.local_hostname);
    }
    if launch.tty {
        set("TERM", "xterm");
    }
    for (name, value) in profile.entrypoint.env.iter().flatten().chain(&profile.metadata.env) {
        set(name, value);
    }
    for pair in launch.env {
        match pair.split_once('=') {
            Some((name, value)) => set(name, value),
            None => return refuse(ErrorCode::BadRequest, format!("{pair:?} is no NAME=VALUE")),
        }
    }
    let is_bad =
        |(name, value): &&(String, String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    if let Some((name, _)) = env.iter().find(is_bad) {
        return refuse(ErrorCode::BadRequest, format!("{name:?} is no environment variable"));
    }
    Ok(env)
}

/// The program's file: a name without a slash is looked up in PATH, relative names count from the directory.
fn find_program(program: &str, path: &str, workdir: &Path) -> Result<PathBuf, TaskError> {
    if program.contains('/') {
        let file = workdir.join(program);
        return match check_program(&file) {
            Verdict::Runs => Ok(file),
            Verdict::CannotRun => refuse(ErrorCode::NotExecutable, format!("{program} is not executable")),
            Verdict::Missing => refuse(ErrorCode::NotFound, format!("no such program: {program}")),
        };
    }
    let mut unfit = None;
    for directory in path.split(':') {
        let file = workdir.join(directory).join(program);
        match check_program(&file) {
            Verdict::Runs => return Ok(file),
            Verdict::CannotRun => unfit = unfit.or(Some(file)),
            Verdict::Missing => {}
        }
    }
    match unfit {
        Some(file) => refuse(ErrorCode::NotExecutable, format!("{} is not executable", file.display())),
        None => refuse(ErrorCode::NotFound, format!("no program {program:?} in PATH ({path})")),
    }
}

enum Verdict {
    Runs,
    CannotRun,
    Missing,
}

fn check_program(file: &Path) -> Verdict {
    match std::fs::metadata(file) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Verdict::Runs,
        Ok(_) => Verdict::CannotRun,
        Err(_) => Verdict::Missing,
    }
}

/// Docker's exit codes for a program that cannot be started.
pub fn exit_code_for(error: &TaskError) -> i32 {
    match error {
        TaskError::Refused { code: ErrorCode::NotFound, .. } => 127,
        _ => 126,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebuild_protocol::message::{Entrypoint, Metadata};
    use std::collections::BTreeMap;

    fn profile() -> Profile {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        Profile {
            metadata: Metadata {
                local_hostname: "web".to_owned(),
                env: map(&[("B", "run"), ("C", "run")]),
                ..Metadata::default()
            },
            entrypoint: Entrypoint { env: Some(map(&[("A", "image"), ("B", "image")])), ..Entrypoint::default() },
        }
    }

    fn root() -> Identity {
        resolve("", b"root:x:0:0:root:/root:/bin/sh\n", b"").unwrap()
    }

    #[test]
    fn later_environments_win() {
        let env = ["C=exec".to_owned(), "D=x=y".to_owned(), "HOME=/h".to_owned()];
        let launch = Launch { env: &env, tty: true, ..Launch::default() };
        let env: BTreeMap<_, _> = plan_environment(&profile(), &root(), &launch).unwrap().into_iter().collect();
        let get = |name: &str| env[name].as_str();
        assert_eq!((get("A"), get("B"), get("C"), get("D")), ("image", "run", "exec", "x=y"));
        assert_eq!((get("HOME"), get("HOSTNAME"), get("TERM"), get("PATH")), ("/h", "web", "xterm", DEFAULT_PATH));
    }

    #[test]
    fn defaults_come_from_the_user() {
        let env = plan_environment(&profile(), &root(), &Launch::default()).unwrap();
        assert!(env.contains(&("HOME".to_owned(), "/root".to_owned())));
        assert!(!env.iter().any(|(name, _)| name == "TERM"));
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        for bad in ["novalue", "=x", "A=a\0b"] {
            let env = [bad.to_owned()];
            let launch = Launch { env: &env, ..Launch::default() };
            assert!(plan_environment(&profile(), &root(), &launch).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn programs() {
        let here = Path::new("/");
        assert_eq!(find_program("sh", "/nowhere:/bin", here).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find_program("./bin/sh", "", here).unwrap(), Path::new("/./bin/sh"));
        let code = |result: Result<PathBuf, TaskError>| match result {
            Err(TaskError::Refused { code, .. }) => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(find_program("no-such-thing", "/bin", here)), ErrorCode::NotFound);
        assert_eq!(code(find_program("passwd", "/nowhere:/etc", here)), ErrorCode::NotExecutable);
        assert_eq!(code(find_program("/etc", "", here)), ErrorCode::NotExecutable);
        assert_eq!(code(find_program("/no/such", "", here)), ErrorCode::NotFound);
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code_for(&TaskError::new(ErrorCode::NotFound, "")), 127);
        assert_eq!(exit_code_for(&TaskError::new(ErrorCode::NotExecutable, "")), 126);
    }
}
