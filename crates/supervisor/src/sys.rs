//! The only module with unsafe code: signals as a file descriptor, and what a child does between fork and exec.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Zero-terminated for open(2): between fork and exec nothing may allocate.
const OOM_SCORE_ADJ: &[u8] = b"/proc/self/oom_score_adj\0";

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
}

/// Arranges for `command`'s child: own session, no inherited descriptors but 0-2, default signals, and `setup`.
pub fn prepare_child(command: &mut Command, setup: ChildSetup) {
    let parent = std::process::id();
    let netns = setup.netns.map(IntoRawFd::into_raw_fd);
    let hook = move || {
        // SAFETY: only async-signal-safe calls, on values captured before the fork.
        unsafe { child_setup(parent, netns, &setup.die_with_parent, setup.oom_score_adj.as_deref()) }
    };
    // SAFETY: the hook allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(hook);
    }
}

unsafe fn child_setup(
    parent: u32,
    netns: Option<RawFd>,
    die_with_parent: &bool,
    oom_score_adj: Option<&[u8]>,
) -> io::Result<()> {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    libc::sigemptyset(none.as_mut_ptr());
    libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    libc::setsid();
    if let Some(text) = oom_score_adj {
        let fd = libc::open(OOM_SCORE_ADJ.as_ptr().cast(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, text.as_ptr().cast(), text.len());
            libc::close(fd);
        }
    }
    if let Some(netns) = netns {
        if libc::setns(netns, libc::CLONE_NEWNET) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if *die_with_parent {
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
