//! The boot, step by step, and the main thread's life after it.

use crate::guest::{Guest, Order};
use crate::launch::exit_code_for;
use crate::metadata::Profile;
use crate::push::Push;
use crate::reaper::Reaper;
use crate::root::Disks;
use crate::teardown::{power_off, reboot, Ending, HOST_GRACE};
use crate::transport::Transport;
use crate::util::{start_thread, Context, Deadline};
use crate::{
    config, control, entrypoint, etc, files, handover, launch, log, metadata, modules, mounts, network, root, sys,
    volumes,
};
use firebuild_protocol::message::{BootDocument, BootKind, InitMode, PushEvent};
use firebuild_protocol::{ProcessExit, ProcessHost, TaskError};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec};
use std::os::unix::fs::DirBuilderExt;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::Duration;

/// For devices to be announced by the kernel.
const DEVICES_TAKE: Duration = Duration::from_secs(30);
/// For the host to listen and to answer.
const HOST_TAKES: Duration = Duration::from_secs(60);
const METADATA_TAKES: Duration = Duration::from_secs(20);
/// For somebody to attach to an entrypoint that waits for it; then it starts by itself.
pub const ATTACH_TAKES: Duration = Duration::from_secs(60);
/// What Ctrl-Alt-Del leaves the entrypoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a machine holds when its boot is done.
#[derive(Default)]
struct Booted {
    disks: Option<Disks>,
    /// Started when somebody attached, or tried to.
    started_late: bool,
    /// Started, and its exit not told yet.
    owes_exit: bool,
    /// The exit of an entrypoint that could not be started.
    unstarted: Option<ProcessExit>,
}

/// PID 1.
pub fn run() -> ! {
    sys::block_stop_signals();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    match reach_host() {
        Ok((guest, orders)) => live(&guest, &orders),
        Err(error) => {
            log::error(&format!("cannot boot: {error}"));
            reboot()
        }
    }
}

/// From nothing to the boot document.
fn reach_host() -> Result<(Arc<Guest>, Receiver<Order>), TaskError> {
    mounts::mount_early()?;
    log::set_unlimited(true);
    log::note(&format!("version {}", crate::VERSION));
    protect_self();
    log::note("load-modules");
    for failure in modules::load_all() {
        log::error(&failure);
    }
    let reaper = Reaper::start()?;
    log::note("find-host");
    let (transport, incoming) = Transport::start(Deadline::after(DEVICES_TAKE))?;
    log::note(&format!("connect by {}", transport.name()));
    let (push, reply) = Push::connect(Arc::new(transport), Deadline::after(HOST_TAKES))?;
    set_clock(reply.clock_ns);
    let (sender, orders) = channel();
    let guest = Arc::new(Guest::new(reaper, push, reply.boot, sender));
    let own = Arc::clone(&guest);
    start_thread("control", move || control::serve(&own, &incoming))?;
    let own = Arc::clone(&guest);
    start_thread("signals", move || heed_signals(&own))?;
    Ok((guest, orders))
}

/// Never the one to die of a lack of memory.
pub fn protect_from_oom() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        log::error(&format!("oom_score_adj: {error}"));
    }
}

/// Nor does Ctrl-Alt-Del pass PID 1 by.
fn protect_self() {
    protect_from_oom();
    if let Err(errno) = rustix::system::reboot(RebootCommand::CadOff) {
        log::error(&format!("Ctrl-Alt-Del: {errno}"));
    }
}

/// Boot, serve, end.
fn live(guest: &Arc<Guest>, orders: &Receiver<Order>) -> ! {
    let mut booted = Booted::default();
    if let Err(error) = configure(guest, &mut booted) {
        fail(guest, &error);
        if let Some(exit) = booted.unstarted {
            guest.push.exit(exit);
        }
    } else {
        log::set_unlimited(false);
        wait_for_end(guest, orders, &mut booted);
    }
    power_off(&Ending { guest, orders, disks: booted.disks.as_ref(), owes_exit: booted.owes_exit })
}

fn fail(guest: &Guest, error: &TaskError) {
    log::error(&format!("boot failed: {error}"));
    guest.push.event(&failed_event(error));
}

pub fn failed_event(error: &TaskError) -> PushEvent {
    let (code, message) = match error {
        TaskError::Refused { code, message } => (code.as_str(), message.clone()),
        TaskError::Stream(error) => ("io", error.to_string()),
    };
    PushEvent::Failed { code: code.to_owned(), message }
}

pub fn step(guest: &Guest, name: &str) {
    log::note(name);
    guest.push.step(name);
}

/// Everything between the boot document and `ready`.
fn configure(guest: &Arc<Guest>, booted: &mut Booted) -> Result<(), TaskError> {
    let document = &*guest.document();
    step(guest, "check-boot-document");
    config::check(document)?;
    step(guest, "network");
    network::configure(&document.interfaces, document.mmds.as_ref(), Deadline::after(DEVICES_TAKE))?;
    step(guest, "metadata");
    let profile = metadata::load(document, Deadline::after(METADATA_TAKES))?;
    let hostname = hostname_of(document, &profile);
    rustix::system::sethostname(hostname.as_bytes()).doing("set the host name")?;
    if document.kind == BootKind::Build {
        // The build steps' own files are bound over with these.
        etc::write_hosts(&hostname, &document.interfaces)?;
        etc::write_resolv_conf(&document.dns)?;
        guest.set_configured(profile);
        tell_ready(guest, None);
        return Ok(());
    }
    if let Some(root) = &document.root {
        step(guest, "mount-root");
        booted.disks = Some(root::mount_root(root, Deadline::after(DEVICES_TAKE))?);
        step(guest, "switch-root");
        root::switch_root()?;
    }
    for missing in mounts::mount_late()? {
        log::note(&missing);
    }
    step(guest, "write-files");
    write_files(document, &profile, &hostname)?;
    if !document.mounts.is_empty() {
        step(guest, "mount-volumes");
        volumes::mount_all(&document.mounts, Deadline::after(DEVICES_TAKE))?;
    }
    for failure in make_volumes(&document.volumes) {
        log::error(&failure);
    }
    if document.root.as_ref().is_some_and(|root| root.read_only) {
        step(guest, "read-only-root");
        launch::make_workdir(&profile)?;
        root::make_root_readonly()?;
    }
    if document.init == InitMode::System {
        step(guest, "hand-over");
        return handover::hand_over(guest, &profile);
    }
    let pid = if document.start_entrypoint && !document.await_attach {
        step(guest, "start-entrypoint");
        Some(start_entrypoint(guest, &profile, booted)?)
    } else {
        None
    };
    guest.set_configured(profile);
    tell_ready(guest, pid);
    if document.start_entrypoint && document.await_attach {
        start_if_nobody_attaches(guest)?;
    }
    Ok(())
}

fn start_if_nobody_attaches(guest: &Arc<Guest>) -> Result<(), TaskError> {
    let own = Arc::clone(guest);
    start_thread("start", move || {
        std::thread::sleep(ATTACH_TAKES);
        own.order(Order::Start);
    })
}

/// The guest was resumed as another machine. False if its entrypoint cannot be started, which ends it.
fn go_on_as(guest: &Arc<Guest>, booted: &mut Booted, start: bool) -> bool {
    let awaits = guest.document().await_attach;
    if start && !awaits && !start_late(guest, booted) {
        return false;
    }
    if start && awaits {
        if let Err(error) = start_if_nobody_attaches(guest) {
            log::error(&error.to_string());
        }
    }
    tell_ready(guest, guest.supervision.pid());
    true
}

/// Start the entrypoint, unless it has been; false if it cannot be started, which ends the machine.
fn start_late(guest: &Arc<Guest>, booted: &mut Booted) -> bool {
    if std::mem::replace(&mut booted.started_late, true) {
        return true;
    }
    step(guest, "start-entrypoint");
    let Err(error) = guest.profile().and_then(|profile| start_entrypoint(guest, &profile, booted)) else { return true };
    guest.supervision.attached.fail(&error);
    fail(guest, &error);
    if let Some(exit) = booted.unstarted {
        guest.push.exit(exit);
    }
    false
}

/// The folders that the image calls volumes: those that it has stay as they are, the others are made, as Docker does.
/// One that cannot be made is no reason not to boot.
pub fn make_volumes(paths: &[String]) -> Vec<String> {
    let make = |path: &String| {
        let path = format!("/{}", path.trim_start_matches('/'));
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
        made.err().map(|error| format!("the volume {path}: {error}"))
    };
    paths.iter().filter_map(make).collect()
}

pub fn hostname_of(document: &BootDocument, profile: &Profile) -> String {
    const LONGEST: usize = 64;
    let own = &profile.metadata.local_hostname;
    let name = if own.is_empty() { &document.id } else { own };
    name.chars().take(LONGEST).collect()
}

pub fn write_files(document: &BootDocument, profile: &Profile, hostname: &str) -> Result<(), TaskError> {
    etc::write_all(&document.id, hostname, &document.interfaces, &document.dns, &profile.metadata.env)?;
    let passwd = files::read_or_empty("/etc/passwd", 4 << 20)?;
    for failure in etc::write_keys(&profile.metadata.users, &passwd) {
        log::error(&failure);
    }
    Ok(())
}

/// A program that cannot be executed also ends as Docker says: exit code 126 or 127.
fn start_entrypoint(guest: &Arc<Guest>, profile: &Profile, booted: &mut Booted) -> Result<u32, TaskError> {
    match entrypoint::start(guest, profile) {
        Ok(pid) => {
            booted.owes_exit = true;
            Ok(pid)
        }
        Err(error) => {
            booted.unstarted = Some(ProcessExit { code: exit_code_for(&error), signal: None });
            Err(error)
        }
    }
}

/// The boot is done.
pub fn tell_ready(guest: &Guest, entrypoint_pid: Option<u32>) {
    let event = ready_event(entrypoint_pid);
    if let PushEvent::Ready { uptime_ms, .. } = &event {
        log::note(&format!("ready after {uptime_ms} ms"));
    }
    guest.push.event(&event);
}

pub fn ready_event(entrypoint_pid: Option<u32>) -> PushEvent {
    let uptime = rustix::time::clock_gettime(ClockId::Boottime);
    let uptime = Duration::new(
        u64::try_from(uptime.tv_sec).unwrap_or_default(),
        u32::try_from(uptime.tv_nsec).unwrap_or_default(),
    );
    PushEvent::Ready { uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX), entrypoint_pid }
}

/// Set the clock; a machine without a clock chip begins in 1970.
pub fn set_clock(clock_ns: u64) {
    const NANOS: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(clock_ns / NANOS).unwrap_or_default(),
        tv_nsec: i64::try_from(clock_ns % NANOS).unwrap_or_default(),
    };
    if let Err(errno) = rustix::time::clock_settime(ClockId::Realtime, time) {
        log::error(&format!("set the clock: {errno}"));
    }
}

/// Carry out orders until the entrypoint has ended or the machine is to be powered off.
fn wait_for_end(guest: &Arc<Guest>, orders: &Receiver<Order>, booted: &mut Booted) {
    let mut kill_at: Option<Deadline> = None;
    loop {
        let order = match kill_at {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => orders.recv_timeout(deadline.remaining()),
        };
        match order {
            Ok(Order::EntrypointEnded(exit)) => {
                booted.owes_exit = false;
                log::note(&format!("entrypoint ended with {}", exit.code));
                guest.push.exit(exit);
                return;
            }
            Ok(Order::PowerOff) | Err(RecvTimeoutError::Disconnected) => {
                guest.supervision.halt();
                return;
            }
            Ok(Order::Stop { signal, timeout }) => match guest.supervision.halt() {
                Some(pid) => {
                    log::note(&format!("stop with signal {signal}"));
                    // It may be ending by itself this moment: then its end is the next order.
                    let _ = guest.reaper.signal(pid, signal, false);
                    kill_at = Some(Deadline::after(timeout));
                }
                None if booted.owes_exit => {}
                None => return,
            },
            Ok(Order::Start) => {
                if !start_late(guest, booted) {
                    return;
                }
            }
            Ok(Order::Resumed { start }) => {
                if !go_on_as(guest, booted, start) {
                    return;
                }
            }
            Ok(Order::Restart(restart)) => guest.supervision.set_restart(restart),
            Ok(Order::Signal(signal)) => {
                if let Some(pid) = guest.supervision.pid() {
                    // As above: it may be ending.
                    let _ = guest.reaper.signal(pid, signal, false);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(pid) = guest.supervision.pid() {
                    let _ = guest.reaper.signal(pid, libc::SIGKILL, false);
                }
                // Its last output must not wait for ever for a host that does not read.
                guest.give_up_after(HOST_GRACE);
                kill_at = None;
            }
        }
    }
}

fn heed_signals(guest: &Guest) {
    while let Ok(signal) = sys::wait_for_stop_signal() {
        log::note(&format!("signal {signal}"));
        guest.order(Order::Stop { signal: guest.document().stop_signal, timeout: STOP_TIMEOUT });
    }
}
