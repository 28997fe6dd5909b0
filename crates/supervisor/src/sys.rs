//! The only module with unsafe code: signals as a file descriptor, and what a child does between fork and exec.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Zero-terminated for open(2): between fork and exec nothing may allocate.
const OOM_SCORE_ADJ: &[u8] = b"/proc/self/oom_score_adj\0";
const ROOT: &[u8] = b"/\0";

/// Signals that the poll loop handles.
const HANDLED: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];

/// Blocks the handled signals and returns a non-blocking descriptor that delivers them (signalfd(2)).
pub fn open_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before any other use; all pointers are valid for the calls.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in HANDLED {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The number of the next pending signal, or None.
pub fn next_signal(signals: &OwnedFd) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = std::mem::size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has room for exactly one record and is only read when the kernel has filled it whole.
    let signal = unsafe {
        let count = libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size);
        if usize::try_from(count) != Ok(size) {
            return None;
        }
        info.assume_init().ssi_signo
    };
    i32::try_from(signal).ok()
}

/// Takes over a descriptor number given on the command line; it is closed on exec from here on.
///
/// Errors: the number is no open descriptor.
pub fn adopt_fd(number: RawFd) -> io::Result<File> {
    // SAFETY: fcntl on any number is harmless; ownership is taken once, at start, of a number handed over for that.
    unsafe {
        if number < 3 || libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        Ok(File::from_raw_fd(number))
    }
}

/// What a child is given between fork and exec.
pub struct ChildSetup {
    /// The network namespace to join.
    pub netns: Option<OwnedFd>,
    /// SIGKILL when this process dies.
    pub die_with_parent: bool,
    /// The text to write to its oom_score_adj.
    pub oom_score_adj: Option<Vec<u8>>,
    /// The `cgroup.procs` files of the control groups to join.
    pub cgroups: Vec<OwnedFd>,
    pub jail: Option<Jail>,
}

/// A mount namespace of the child's own, with files bound into the folder that a jailer makes its root.
pub struct Jail {
    pub root: CString,
    pub mounts: Vec<BindMount>,
    pub new_netns: bool,
}

/// A file bound on another, which exists.
pub struct BindMount {
    pub source: CString,
    pub target: CString,
    pub read_only: bool,
}

/// Arranges for `command`'s child: own session, no inherited descriptors but 0-2, default signals, and `setup`.
pub fn prepare_child(command: &mut Command, setup: ChildSetup) {
    let parent = std::process::id();
    let hook = move || {
        // SAFETY: only async-signal-safe calls, on values captured before the fork.
        unsafe { child_setup(parent, &setup) }
    };
    // SAFETY: the hook allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(hook);
    }
}

unsafe fn child_setup(parent: u32, setup: &ChildSetup) -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    libc::sigemptyset(none.as_mut_ptr());
    libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    libc::setsid();
    if let Some(text) = &setup.oom_score_adj {
        let fd = libc::open(OOM_SCORE_ADJ.as_ptr().cast(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, text.as_ptr().cast(), text.len());
            libc::close(fd);
        }
    }
    for members in &setup.cgroups {
        // 0 is the process that writes.
        if libc::write(members.as_raw_fd(), b"0".as_ptr().cast(), 1) != 1 {
            return Err(io::Error::last_os_error());
        }
    }
    if let Some(netns) = &setup.netns {
        if libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if let Some(jail) = &setup.jail {
        enter_jail(jail)?;
    }
    if setup.die_with_parent {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // The parent may have died before the request was made.
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    // Whatever this process inherited without close-on-exec must not reach the child. Older kernels lack the flag.
    libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    Ok(())
}

/// The mounts are the child's alone: they end with its last process, and nobody else meets or has to undo them.
unsafe fn enter_jail(jail: &Jail) -> io::Result<()> {
    let network = if jail.new_netns { libc::CLONE_NEWNET } else { 0 };
    check(libc::unshare(libc::CLONE_NEWNS | network))?;
    let none = std::ptr::null();
    check(libc::mount(none, ROOT.as_ptr().cast(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
    // Folders such as /run are often mounted so that neither programs nor devices in them may be used: here they must be.
    bind(&jail.root, &jail.root, libc::MS_NOSUID)?;
    for each in &jail.mounts {
        let read_only = if each.read_only { libc::MS_RDONLY } else { 0 };
        bind(&each.source, &each.target, libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | read_only)?;
    }
    // Whatever is executed from here on cannot gain what the jailer gives up.
    check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

unsafe fn bind(source: &CStr, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let none = std::ptr::null();
    check(libc::mount(source.as_ptr(), target.as_ptr(), none, libc::MS_BIND, none.cast()))?;
    // The flags of a bind mount are taken from its source; a second call changes them (mount(2)).
    check(libc::mount(none, target.as_ptr(), none, libc::MS_BIND | libc::MS_REMOUNT | flags, none.cast()))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
