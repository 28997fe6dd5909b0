//! All processes but this one made to stand still, and let go on: by the freezer of control groups, else by signals.
//!
//! The groups are those of version 2, whose freezer belongs to no controller: its hierarchy can be mounted beside any of
//! version 1, so that theirs is never needed. Groups of others are frozen where they are. What is in the root group, which
//! cannot be frozen, is in a group of our own meanwhile. In system mode this freezes PID 1 too: an init that goes on
//! would start services and read files that are about to change.

use crate::processes::{find_others, find_stat};
use crate::util::{poll, refuse, Context, Deadline};
use crate::{log, sys};
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::event::{PollFd, PollFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const OWN_MOUNT: &str = "/dev/.firebuild-groups";
const OWN_GROUP: &str = "firebuild-held";
/// Between looks at what tells nobody of its change.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Processes that stand still.
pub enum Frozen {
    Groups(Groups),
    Signals {
        /// Those that somebody else had stopped.
        stopped: BTreeSet<u32>,
    },
}

impl Frozen {
    pub fn way(&self) -> &'static str {
        match self {
            Self::Groups(_) => "groups",
            Self::Signals { .. } => "signals",
        }
    }
}

/// Stop everybody else. What does not stand still in time is named, and everything goes on.
pub fn freeze(deadline: Deadline) -> Result<Frozen, TaskError> {
    let frozen = match Groups::open() {
        Some(mut groups) => {
            let done = groups.freeze(deadline);
            (Frozen::Groups(groups), done)
        }
        None => {
            let stopped = find_others().into_iter().filter(|(_, stat)| stat.state == "T").map(|(pid, _)| pid).collect();
            (Frozen::Signals { stopped }, stop_all(deadline))
        }
    };
    match frozen {
        (frozen, Ok(())) => Ok(frozen),
        (frozen, Err(error)) => {
            if let Err(error) = thaw(frozen) {
                log::error(&error.to_string());
            }
            Err(error)
        }
    }
}

/// Let everybody go on.
pub fn thaw(frozen: Frozen) -> Result<(), TaskError> {
    match frozen {
        Frozen::Groups(groups) => groups.thaw(),
        Frozen::Signals { stopped } => {
            for (pid, stat) in find_others() {
                if stat.state == "T" && !stopped.contains(&pid) {
                    // It may have been killed meanwhile.
                    let _ = sys::kill(signed(pid), libc::SIGCONT);
                }
            }
            Ok(())
        }
    }
}

fn signed(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(i32::MAX)
}

/// SIGSTOP to all, again until nobody new was seen. PID 1 never gets it: it is this program, or an init that cannot be stopped.
fn stop_all(deadline: Deadline) -> Result<(), TaskError> {
    loop {
        // An error means that there is nobody.
        let _ = sys::kill(-1, libc::SIGSTOP);
        let moving = |(pid, stat): &(u32, crate::processes::Stat)| {
            *pid != 1 && !matches!(stat.state.as_str(), "T" | "t" | "Z" | "X")
        };
        match find_others().into_iter().find(moving) {
            None => return Ok(()),
            Some((pid, stat)) if deadline.has_passed() => return does_not_stop(pid, &stat.name),
            Some(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

fn does_not_stop<T>(pid: u32, name: &str) -> Result<T, TaskError> {
    refuse(ErrorCode::Busy, format!("process {pid} ({name:?}) does not stand still"))
}

/// The hierarchy of control groups, and what was changed in it.
pub struct Groups {
    root: PathBuf,
    mounted: bool,
    /// Where this process was.
    home: String,
    frozen: Vec<PathBuf>,
}

impl Groups {
    /// None where the kernel has no control groups of version 2, or no freezer for them (before 5.2).
    fn open() -> Option<Self> {
        let (root, mounted) = match find_mount(&fs::read_to_string("/proc/self/mountinfo").ok()?) {
            Some(root) => (PathBuf::from(root), false),
            None => (mount_own()?, true),
        };
        let home = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| find_home(&text)).unwrap_or_default();
        let groups = Self { root, mounted, home, frozen: Vec::new() };
        let own = groups.own();
        let made = fs::create_dir(&own);
        if (made.is_ok() || own.is_dir()) && own.join("cgroup.freeze").exists() {
            return Some(groups);
        }
        groups.close();
        None
    }

    fn own(&self) -> PathBuf {
        self.root.join(OWN_GROUP)
    }

    fn freeze(&mut self, deadline: Deadline) -> Result<(), TaskError> {
        if self.home != "/" {
            write(&self.root.join("cgroup.procs"), &std::process::id().to_string())?;
        }
        for group in list_groups(&self.root)? {
            let switch = group.join("cgroup.freeze");
            // Else somebody has frozen it before; our own may be left over from a freeze that was cut off.
            let is_free = fs::read_to_string(&switch).is_ok_and(|text| text.trim() == "0");
            if is_free || group == self.own() {
                write(&switch, "1")?;
                self.frozen.push(group);
            }
        }
        self.gather(deadline)?;
        self.frozen.iter().try_for_each(|group| await_frozen(group, deadline))
    }

    /// Move all that is in the root group to our own, until nobody new is seen.
    fn gather(&self, deadline: Deadline) -> Result<(), TaskError> {
        let own_procs = self.own().join("cgroup.procs");
        let mut moved = BTreeSet::from([std::process::id()]);
        loop {
            let new: Vec<u32> = read_pids(&self.root)?.into_iter().filter(|pid| !moved.contains(pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for pid in new {
                moved.insert(pid);
                let Some(stat) = find_stat(pid) else { continue };
                let result = fs::write(&own_procs, pid.to_string());
                if result.is_err() && find_stat(pid).is_some_and(|stat| stat.state != "Z" && stat.state != "X") {
                    return does_not_stop(pid, &stat.name);
                }
                if deadline.has_passed() {
                    return does_not_stop(pid, &stat.name);
                }
            }
        }
    }

    fn thaw(self) -> Result<(), TaskError> {
        let root_procs = self.root.join("cgroup.procs");
        let own = self.own();
        for pid in read_pids(&own)? {
            // One that was killed meanwhile need not be moved.
            let moved = fs::write(&root_procs, pid.to_string());
            if moved.is_err() && find_stat(pid).is_some_and(|stat| stat.state != "Z" && stat.state != "X") {
                return does_not_go_on(pid);
            }
        }
        for group in &self.frozen {
            // A group may have been removed with what was in it.
            if group.exists() {
                write(&group.join("cgroup.freeze"), "0")?;
            }
        }
        // Stays, empty, while one that was killed in it is not reaped; the next one finds it.
        let _ = fs::remove_dir(&own);
        if !matches!(self.home.as_str(), "" | "/") {
            let home = self.root.join(self.home.trim_start_matches('/')).join("cgroup.procs");
            write(&home, &std::process::id().to_string())?;
        }
        self.close();
        Ok(())
    }

    fn close(&self) {
        if self.mounted {
            if let Err(errno) = rustix::mount::unmount(OWN_MOUNT, UnmountFlags::DETACH) {
                log::error(&format!("unmount {OWN_MOUNT}: {errno}"));
            }
            let _ = fs::remove_dir(OWN_MOUNT);
        }
    }
}

fn does_not_go_on<T>(pid: u32) -> Result<T, TaskError> {
    refuse(ErrorCode::Io, format!("process {pid} cannot be moved back to its control group"))
}

fn mount_own() -> Option<PathBuf> {
    let _ = fs::create_dir(OWN_MOUNT);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("cgroup2", OWN_MOUNT, "cgroup2", flags, None).ok()?;
    Some(PathBuf::from(OWN_MOUNT))
}

/// Where the whole hierarchy of version 2 is mounted already (proc_pid_mountinfo(5)): mounting it once more would change
/// the options that an init has given it.
fn find_mount(mountinfo: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (inner, point) = (fields.next()?, fields.next()?);
        let is_plain = !point.contains('\\');
        (source.split(' ').next() == Some("cgroup2") && inner == "/" && is_plain).then(|| point.to_owned())
    })
}

/// This process's group of version 2, of cgroups(7)'s `/proc/PID/cgroup`.
fn find_home(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn list_groups(root: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let entries = fs::read_dir(root).doing("list the control groups")?;
    Ok(entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect())
}

fn read_pids(group: &Path) -> Result<Vec<u32>, TaskError> {
    let text = fs::read_to_string(group.join("cgroup.procs")).doing("read a control group's processes")?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn write(path: &Path, text: &str) -> Result<(), TaskError> {
    fs::write(path, text).doing(format_args!("write {text} to {}", path.display()))
}

fn await_frozen(group: &Path, deadline: Deadline) -> Result<(), TaskError> {
    let path = group.join("cgroup.events");
    let is_frozen = || fs::read_to_string(&path).map(|text| text.lines().any(|line| line == "frozen 1"));
    let file = fs::File::open(&path).doing(format_args!("open {}", path.display()))?;
    loop {
        match is_frozen() {
            Ok(true) => return Ok(()),
            Ok(false) if deadline.has_passed() => {
                return refuse(
                    ErrorCode::Busy,
                    format!("what is in the control group {} does not stand still", group.display()),
                );
            }
            Ok(false) => {
                // The kernel tells of each change of the file.
                poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(deadline.remaining().min(10 * LOOK_AGAIN)))
                    .doing("poll")?;
            }
            Err(error) => return Err(error).doing(format_args!("read {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_hierarchy_of_version_2_is_found() {
        let text = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                    31 30 0:27 / /sys/fs/cgroup/freezer rw shared:1 - cgroup cgroup rw,freezer\n\
                    32 30 0:28 /docker /mnt/inner rw - cgroup2 cgroup2 rw\n\
                    33 30 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:5 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(text).as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(find_mount("32 30 0:28 /docker /mnt rw - cgroup2 cgroup2 rw"), None);
        assert_eq!(find_mount("x"), None);
    }

    #[test]
    fn where_this_process_is() {
        assert_eq!(find_home("12:pids:/a\n0::/init.scope\n").as_deref(), Some("/init.scope"));
        assert_eq!(find_home("12:pids:/a\n"), None);
    }
}
