//! The only module with unsafe code: what the step process needs of the kernel and rustix does not offer safely.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;

/// The result of [`fork`].
pub enum Forked {
    Child,
    Parent(i32),
}

/// fork(2). The caller's process must have one thread only.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: the step process never starts a thread, so the child has all the locks it needs.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// A new set of namespaces (unshare(2)).
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no memory is handed over; the process has one thread.
    check(unsafe { libc::unshare(flags) })
}

/// Blocks all signals, so that they wait for [`wait_signal`].
pub fn block_signals() -> io::Result<()> {
    // SAFETY: the set is initialised by sigfillset before use.
    unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(set.as_mut_ptr());
        check(libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()))
    }
}

/// No signal blocked, all with their default action: as a program expects to be started.
pub fn reset_signals() {
    // SAFETY: the set is initialised by sigemptyset before use; setting a default action runs no code of ours.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Waits for the next blocked signal and returns its number.
pub fn wait_signal() -> io::Result<i32> {
    // SAFETY: the set is initialised by sigfillset before use; no information about the signal is asked for.
    let signal = unsafe {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(set.as_mut_ptr());
        libc::sigwaitinfo(set.as_ptr(), std::ptr::null_mut())
    };
    if signal < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(signal)
}

pub fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is handed over. An error says that the process has ended.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// A child that has ended: its pid, and its exit code or signal. None if none has ended or there is none.
pub fn reap() -> Option<(i32, Result<i32, i32>)> {
    let mut status = 0;
    // SAFETY: the pointer is to a local variable.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    if libc::WIFSIGNALED(status) {
        return Some((pid, Err(libc::WTERMSIG(status))));
    }
    Some((pid, Ok(libc::WEXITSTATUS(status))))
}

/// SIGKILL for this process when its parent ends.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: prctl with two numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
}

/// A session of its own, with standard input as its controlling terminal if it is to have one.
pub fn new_session(terminal: bool) -> io::Result<()> {
    // SAFETY: no memory is handed over. 1: the terminal is taken from the session that has it now.
    unsafe {
        libc::setsid();
        if terminal {
            return check(libc::ioctl(0, libc::TIOCSCTTY, 1));
        }
    }
    Ok(())
}

/// Everything above standard error is closed on exec.
pub fn close_others_on_exec() {
    // SAFETY: only flags of descriptors change.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// (soft, hard) limit of open files.
pub fn set_nofile_limit((soft, hard): (u64, u64)) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer is to a local variable. The limit is a convenience: an error changes nothing.
    unsafe {
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one text.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })
}

/// Sets supplementary groups, group and user, in this order, for the process.
pub fn set_identity(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are of one list.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}

/// Takes all capabilities but `kept` (a bit each) out of the bounding set.
pub fn drop_bounding(kept: u64) -> io::Result<()> {
    for capability in 0..64_u64 {
        if kept & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: prctl with numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // EINVAL: this kernel has no capability of that number.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
        }
    }
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets the permitted and effective capabilities; none is inheritable (capset(2), version 3).
pub fn set_capabilities(kept: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let half = |bits: u64| {
        let bits = u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
        CapData { effective: bits, permitted: bits, inheritable: 0 }
    };
    let data = [half(kept), half(kept >> 32)];
    // SAFETY: the two structures are the ones of version 3, and live until the call returns.
    check(unsafe { i32::try_from(libc::syscall(libc::SYS_capset, &header, data.as_ptr())).unwrap_or(-1) })
}

/// Brings the loopback interface of this network namespace up.
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data for which zeros are valid; the kernel writes no more than one ifreq.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request))
    }
}

/// Becomes another program; returns only if that fails.
pub fn exec(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| {
        let mut pointers: Vec<*const libc::c_char> = list.iter().map(|text| text.as_ptr()).collect();
        pointers.push(std::ptr::null());
        pointers
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists end in a null pointer and point into texts that outlive the call.
    unsafe {
        libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr());
    }
    io::Error::last_os_error()
}

/// Ends this process without running anything on the way out.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns.
    unsafe { libc::_exit(code) }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
