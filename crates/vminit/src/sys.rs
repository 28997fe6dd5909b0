//! The one module with unsafe code: the program's entry, signals, what runs between fork and exec, vsock addresses.
#![allow(unsafe_code)]

use rustix::fs::{Mode, OFlags};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program's entry. Not Rust's own: that one aborts when descriptors 0 to 2 are closed and there is
/// no `/dev/null`, which is how a kernel without a console starts PID 1.
#[cfg(not(test))]
#[no_mangle]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: plain calls. A write to a closed stream must be an error, not the end of PID 1; and many
    // short threads must not each leave a heap behind.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_ABOVE);
    }
    crate::start()
}

/// Buffers of that size go back to the kernel as soon as they are dropped.
#[cfg(not(test))]
const MAPPED_ABOVE: libc::c_int = 64 * 1024;

/// The signals that PID 1 takes as a request to stop: SIGINT is Ctrl-Alt-Del.
const STOP_SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGPWR];

/// The signals that an init or a user may send to the entrypoint's service.
pub const FORWARDED_SIGNALS: [libc::c_int; 7] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data that sigemptyset initializes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

/// Block the stop signals in this thread and all that it will start, so that [`wait_for_stop_signal`] gets them.
pub fn block_stop_signals() {
    block_signals(&STOP_SIGNALS);
}

/// Block signals in this thread and all that it will start, so that [`wait_for_signal`] gets them.
pub fn block_signals(signals: &[libc::c_int]) {
    let set = signal_set(signals);
    // SAFETY: the set is initialized, the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// Block until one of the stop signals comes.
pub fn wait_for_stop_signal() -> io::Result<i32> {
    wait_for_signal(&STOP_SIGNALS)
}

/// Block until one of these signals comes; they must be blocked.
pub fn wait_for_signal(signals: &[libc::c_int]) -> io::Result<i32> {
    let set = signal_set(signals);
    let mut signal = 0;
    // SAFETY: both pointers are to live locals.
    match unsafe { libc::sigwait(&set, &mut signal) } {
        0 => Ok(signal),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// What a child does between fork and exec, in this order.
#[derive(Debug, Default)]
pub struct ChildSetup {
    /// Become the leader of a new session.
    pub new_session: bool,
    /// Take standard input as controlling terminal (needs `new_session`).
    pub controlling_terminal: bool,
    pub workdir: Option<CString>,
    /// uid, gid, supplementary groups.
    pub identity: Option<(u32, u32, Vec<u32>)>,
    /// What to execute instead of the command's own program, arguments and environment.
    pub program: Option<Program>,
}

/// A program for execve(2) itself: the library's way of executing would hand a text file to a shell.
#[derive(Debug)]
pub struct Program {
    path: CString,
    // The pointers go into the strings, whose bytes stay where they are when these vectors move.
    _argv: Vec<CString>,
    _env: Vec<CString>,
    argv_pointers: Vec<*const libc::c_char>,
    env_pointers: Vec<*const libc::c_char>,
}

// SAFETY: the pointers go to memory that the program owns and nobody changes.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

impl Program {
    pub fn new(path: CString, argv: Vec<CString>, env: Vec<CString>) -> Self {
        let pointers = |strings: &[CString]| {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let (argv_pointers, env_pointers) = (pointers(&argv), pointers(&env));
        Self { path, _argv: argv, _env: env, argv_pointers, env_pointers }
    }

    /// Does not return if it succeeds.
    fn execute(&self) -> io::Error {
        // SAFETY: three live strings or null-terminated arrays of such.
        unsafe { libc::execve(self.path.as_ptr(), self.argv_pointers.as_ptr(), self.env_pointers.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// How many files a program may open, and how far it may raise that itself: as container engines give it, for programs
/// expect no less (the kernel's own hard limit is 4096) and some use all of what they get.
const OPEN_FILES: rustix::process::Rlimit = rustix::process::Rlimit { current: Some(1024), maximum: Some(524_288) };

/// Let the command do this setup, and start with default signals, no signal blocked, `oom_score_adj` 0 and the usual
/// limit of open files.
pub fn prepare_child(command: &mut Command, setup: ChildSetup) {
    let identity = setup.identity.map(|(uid, gid, groups)| {
        let groups: Vec<_> = groups.into_iter().map(rustix::process::Gid::from_raw).collect();
        (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid), groups)
    });
    let hook = move || -> io::Result<()> {
        reset_signals();
        if let Ok(file) = rustix::fs::open("/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        {
            rustix::io::write(&file, b"0")?;
        }
        // Refused only where we may not raise it, in tests.
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, OPEN_FILES);
        if setup.new_session {
            rustix::process::setsid()?;
        }
        if setup.controlling_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some(workdir) = &setup.workdir {
            rustix::process::chdir(workdir.as_c_str())?;
        }
        if let Some((uid, gid, groups)) = &identity {
            set_thread_groups(groups)?;
            set_thread_gid(*gid)?;
            set_thread_uid(*uid)?;
        }
        if let Some(program) = &setup.program {
            return Err(program.execute());
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls only; all its memory was allocated before the fork.
    unsafe { command.pre_exec(hook) };
}

/// Become the image's init: with the signals, the limits and the environment that a kernel starts one with. Returns only
/// if that fails.
pub fn become_init(program: &CString) -> io::Error {
    let argv = vec![program.clone()];
    let env = ["HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
    let env = env.iter().map(|text| CString::new(*text).unwrap_or_default()).collect();
    let program = Program::new(program.clone(), argv, env);
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "0") {
        return error;
    }
    reset_signals();
    program.execute()
}

fn reset_signals() {
    // SAFETY: async-signal-safe calls on an initialized local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// `struct sockaddr_vm` of vsock(7).
pub struct VsockAddress {
    pub cid: u32,
    pub port: u32,
}

// SAFETY: the closure gets a pointer to a fully initialized sockaddr_vm and its size.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        let length = std::mem::size_of::<libc::sockaddr_vm>() as SocketAddrLen;
        f(std::ptr::addr_of!(address).cast(), length)
    }
}

/// This machine's vsock context id (`IOCTL_VM_SOCKETS_GET_LOCAL_CID` on `/dev/vsock`); None while no transport has one.
pub fn local_vsock_cid() -> Option<u32> {
    const GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let file = rustix::fs::open("/dev/vsock", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut cid: libc::c_uint = libc::VMADDR_CID_ANY;
    // SAFETY: the request writes one unsigned int.
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&file), GET_LOCAL_CID, &mut cid) };
    (result == 0 && cid != libc::VMADDR_CID_ANY).then_some(cid)
}

/// kill(2) with any signal number. A negative pid is a process group, -1 every process but this one.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain call without pointers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// EXT4_IOC_RESIZE_FS (`fs/ext4/ext4.h`, `_IOW('f', 16, __u64)`): the mounted file system of `directory` gets that many blocks.
pub fn resize_ext4(directory: std::os::fd::BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    const RESIZE_FS: libc::c_ulong = 0x4008_6610;
    // SAFETY: the request reads one u64, which outlives the call.
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&directory), RESIZE_FS as _, &blocks) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Random bytes that the kernel's pool takes in one request.
pub const SEED_BYTES: usize = 512;

/// RNDADDENTROPY and RNDRESEEDCRNG of random(4): mix the bytes into the kernel's random pool, count them as random, and
/// let whoever asks from now on get what follows from them. Of more than [`SEED_BYTES`] the first so many.
pub fn reseed_random_pool(device: std::os::fd::BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
    const RESEED: libc::c_ulong = 0x5207;
    /// `struct rand_pool_info` of `linux/random.h`.
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; SEED_BYTES],
    }
    let count = bytes.len().min(SEED_BYTES);
    let mut info = PoolInfo { entropy_bits: (count * 8) as _, size: count as _, bytes: [0; SEED_BYTES] };
    for (to, from) in info.bytes.iter_mut().zip(bytes) {
        *to = *from;
    }
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    // SAFETY: the first request reads the struct, of whose bytes `size` are there; the second has no argument.
    let results = unsafe { [libc::ioctl(fd, ADD_ENTROPY as _, &info), libc::ioctl(fd, RESEED as _)] };
    match results {
        [0, 0] => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
