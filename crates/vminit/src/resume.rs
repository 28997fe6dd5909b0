//! After a restore: the steps by which a guest becomes another machine before any of its processes goes on.
//!
//! Each step can be done again, so that a host whose request failed may ask once more; until then all stands still.

use crate::freeze::Frozen;
use crate::guest::{Guest, Order};
use crate::metadata::{self, Profile};
use crate::snapshot::{self, HOST_TAKES};
use crate::util::{lock, parse_hex, refuse, start_thread, Context, Deadline};
use crate::{boot, config, etc, files, handover, hooks, launch, log, network, root, sshd, sys};
use firebuild_protocol::message::{BootDocument, BootKind, InitMode, ResumeRequest};
use firebuild_protocol::{ErrorCode, TaskError};
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};

const METADATA_TAKES: Duration = Duration::from_secs(20);
const FEWEST_SEED_BYTES: usize = 32;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where the new boot id lies until it is mounted over the kernel's.
const BOOT_ID_FILE: &str = "/dev/.firebuild-boot-id";

struct Resume<'a> {
    guest: &'a Arc<Guest>,
    old: Arc<BootDocument>,
    new: &'a BootDocument,
    clock_ns: u64,
    seed: Vec<u8>,
    frozen: Option<Frozen>,
    profile: Profile,
    hostname: String,
    /// Types of SSH host keys that are made once all goes on.
    late_keys: Vec<&'static str>,
}

type Step = (&'static str, fn(&mut Resume<'_>) -> Result<(), TaskError>);

/// In this order. The random pool is first: whatever comes after it may draw from it.
const STEPS: &[Step] = &[
    ("random-pool", reseed),
    ("hold", hold),
    ("clock", set_clock),
    ("network", set_network),
    ("metadata", load_metadata),
    ("hostname", set_hostname),
    ("files", write_files),
    ("boot-id", renew_boot_id),
    ("ssh-host-keys", renew_host_keys),
    ("hooks", run_hooks),
    ("read-only-root", close_root),
    ("connect", connect),
    ("go-on", go_on),
];

/// Carry out the steps; how long each took. An error names the step, and all stands still after it.
pub fn resume(guest: &Arc<Guest>, request: &ResumeRequest) -> Result<Value, TaskError> {
    let mut held = lock(&guest.hold.frozen);
    let old = guest.document();
    check(&old, &request.boot)?;
    let seed = parse_hex(&request.seed).filter(|seed| (FEWEST_SEED_BYTES..=sys::SEED_BYTES).contains(&seed.len()));
    let Some(seed) = seed else { return refuse(ErrorCode::BadRequest, "seed: 64 to 1024 hexadecimal digits") };
    let mut resume = Resume {
        guest,
        old,
        new: &request.boot,
        clock_ns: request.clock_ns,
        seed,
        frozen: held.take(),
        profile: Profile::default(),
        hostname: String::new(),
        late_keys: Vec::new(),
    };
    let done = carry_out(&mut resume);
    *held = resume.frozen.take();
    let times = done?;
    let start = starts_entrypoint(&resume.old, &request.boot);
    guest.order(Order::Resumed { start });
    Ok(json!({ "steps": times }))
}

fn carry_out(resume: &mut Resume<'_>) -> Result<Vec<Value>, TaskError> {
    log::note(&format!("resume as {}", resume.new.id));
    let mut times = Vec::new();
    for (name, step) in STEPS {
        log::note(name);
        let began = Instant::now();
        step(resume).map_err(|error| in_step(name, error))?;
        times.push(json!({"name": name, "ms": u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)}));
    }
    Ok(times)
}

fn in_step(name: &str, error: TaskError) -> TaskError {
    let (code, message) = match error {
        TaskError::Refused { code, message } => (code, message),
        TaskError::Stream(error) => (ErrorCode::Io, error.to_string()),
    };
    let error = TaskError::new(code, format!("{name}: {message}"));
    log::error(&format!("resume failed: {error}"));
    error
}

/// What a machine cannot become after its boot is refused.
fn check(old: &BootDocument, new: &BootDocument) -> Result<(), TaskError> {
    config::check(new)?;
    let names = |document: &BootDocument| document.interfaces.iter().map(|each| each.name.clone()).collect::<Vec<_>>();
    let is_new = starts_entrypoint(old, new);
    let wrong = if (old.kind, old.init) != (new.kind, new.init) {
        "kind and init are those of the snapshot"
    } else if old.root != new.root {
        "the root's drives and its mode are those of the snapshot"
    } else if old.mounts != new.mounts {
        "volumes cannot be added, removed or mounted elsewhere after a snapshot"
    } else if names(old) != names(new) {
        "the machine has the network interfaces of its snapshot, by the same names"
    } else if old.start_entrypoint && !new.start_entrypoint {
        "the entrypoint has been started before the snapshot"
    } else if is_new && new.init == InitMode::System {
        "an entrypoint beside an init is started before the snapshot or not at all"
    } else if !is_new && (old.tty, old.stdin) != (new.tty, new.stdin) {
        "the entrypoint has the terminal and the input that it was started with"
    } else if !is_new && old.health != new.health {
        "the health check is that of the snapshot"
    } else {
        return Ok(());
    };
    refuse(ErrorCode::BadRequest, format!("resume: {wrong}"))
}

fn reseed(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/urandom", flags, Mode::empty()).doing("open /dev/urandom")?;
    sys::reseed_random_pool(std::os::fd::AsFd::as_fd(&device), &resume.seed).doing("reseed the kernel's random pool")
}

/// After a snapshot this is so already. Without one the request makes a running machine another one.
fn hold(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    if !resume.guest.hold.is_held() {
        snapshot::stop_everything(resume.guest, &mut resume.frozen)?;
    }
    // The next supervisor's is another stream.
    resume.guest.push.suspend(Duration::ZERO);
    Ok(())
}

fn set_clock(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    boot::set_clock(resume.clock_ns);
    Ok(())
}

fn set_network(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    network::reconfigure(&resume.new.interfaces, resume.new.mmds.as_ref())
}

fn load_metadata(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    resume.profile = metadata::load(resume.new, Deadline::after(METADATA_TAKES))?;
    resume.hostname = boot::hostname_of(resume.new, &resume.profile);
    Ok(())
}

fn set_hostname(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    rustix::system::sethostname(resume.hostname.as_bytes()).doing("set the host name")
}

/// hostname, hosts, resolv.conf, machine-id, the run's environment, the users' keys; in system mode what its service reads.
fn write_files(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    if resume.new.kind == BootKind::Build {
        etc::write_hosts(&resume.hostname, &resume.new.interfaces)?;
        return etc::write_resolv_conf(&resume.new.dns);
    }
    if has_readonly_root(resume) {
        root::make_root_writable()?;
    }
    etc::remove_keys(&find_revoked(resume))?;
    boot::write_files(resume.new, &resume.profile, &resume.hostname)?;
    for failure in boot::make_volumes(&resume.new.volumes) {
        log::error(&failure);
    }
    if resume.new.init == InitMode::System {
        handover::save_document(resume.new, &resume.profile)?;
    }
    Ok(())
}

fn has_readonly_root(resume: &Resume<'_>) -> bool {
    resume.new.root.as_ref().is_some_and(|root| root.read_only)
}

/// Users who could log in to the machine of the snapshot with keys that it was given, and have none here.
fn find_revoked(resume: &Resume<'_>) -> Vec<String> {
    let Ok(old) = resume.guest.profile() else { return Vec::new() };
    let new = &resume.profile.metadata.users;
    let has_keys = |name: &String| new.get(name).is_some_and(|user| !user.ssh_keys.is_empty());
    let given = old.metadata.users.iter().filter(|(_, user)| !user.ssh_keys.is_empty());
    given.map(|(name, _)| name).filter(|name| !has_keys(name)).cloned().collect()
}

/// The kernel makes its boot id once: another is mounted over it.
fn renew_boot_id(_resume: &mut Resume<'_>) -> Result<(), TaskError> {
    // Of an earlier resume, if there was one.
    let _ = rustix::mount::unmount(BOOT_ID, UnmountFlags::DETACH);
    let id = files::read_or_empty("/proc/sys/kernel/random/uuid", 64)?;
    std::fs::write(BOOT_ID_FILE, id).doing("write a boot id")?;
    let mounted = rustix::mount::mount_bind(BOOT_ID_FILE, BOOT_ID).doing(format_args!("mount a file over {BOOT_ID}"));
    std::fs::remove_file(BOOT_ID_FILE).doing("remove a boot id's file")?;
    mounted
}

fn renew_host_keys(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    match resume.new.kind {
        BootKind::Build => {}
        BootKind::Run => {
            let may_wait = !has_readonly_root(resume);
            resume.late_keys = sshd::renew_host_keys(&resume.guest.reaper, may_wait)?;
        }
    }
    Ok(())
}

/// A snapshot waits for that: a key that is half made would be the same one in all clones.
fn make_late_keys(guest: &Arc<Guest>, kinds: Vec<&'static str>) -> Result<(), TaskError> {
    let own = Arc::clone(guest);
    start_thread("host-keys", move || {
        let _work = own.hold.work();
        if let Err(error) = sshd::make_host_keys(&own.reaper, &kinds) {
            log::error(&error.to_string());
        }
    })
}

/// The image's own, one after the other; the first that fails ends the resume.
fn run_hooks(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    if resume.new.kind == BootKind::Build {
        return Ok(());
    }
    let env = [
        ("FIREBUILD_ID", resume.new.id.as_str()),
        ("FIREBUILD_HOSTNAME", resume.hostname.as_str()),
        ("FIREBUILD_PREVIOUS_ID", resume.old.id.as_str()),
    ];
    for hook in hooks::find(hooks::FOLDER)? {
        hooks::run(&resume.guest.reaper, &hook, &[], &env, hooks::HOOK_TAKES)?;
    }
    Ok(())
}

fn close_root(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    if !has_readonly_root(resume) {
        return Ok(());
    }
    if starts_entrypoint(&resume.old, resume.new) {
        launch::make_workdir(&resume.profile)?;
    }
    root::make_root_readonly()
}

fn connect(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    resume.guest.push.reopen(Deadline::after(HOST_TAKES))
}

fn go_on(resume: &mut Resume<'_>) -> Result<(), TaskError> {
    let guest = resume.guest;
    guest.set_configured(std::mem::take(&mut resume.profile));
    guest.set_document(resume.new.clone());
    guest.order(Order::Restart(resume.new.restart));
    snapshot::release(guest, &mut resume.frozen)?;
    match std::mem::take(&mut resume.late_keys) {
        none if none.is_empty() => Ok(()),
        kinds => make_late_keys(guest, kinds),
    }
}

/// Whether the entrypoint is started only now.
fn starts_entrypoint(old: &BootDocument, new: &BootDocument) -> bool {
    new.start_entrypoint && !old.start_entrypoint
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = r#"{"id":"a","kind":"run","init":"direct","metadata":{},"root":{"mode":"copy","lower":"vda"},
        "interfaces":[{"name":"eth0","mac":"b6:16:f2:3d:29:cf"}],"start_entrypoint":true}"#;

    fn document(change: impl FnOnce(&mut BootDocument)) -> BootDocument {
        let mut document = serde_json::from_str(RUN).unwrap();
        change(&mut document);
        document
    }

    #[test]
    fn another_identity_is_taken() {
        check(
            &document(|_| ()),
            &document(|new| {
                new.id = "b".to_owned();
                new.interfaces[0].mac = "b6:16:f2:3d:29:d0".to_owned();
                new.interfaces[0].addresses = vec!["10.0.0.9/24".to_owned()];
                new.await_attach = true;
            }),
        )
        .unwrap();
        // A warm start: the terminal is the new entrypoint's.
        check(&document(|old| old.start_entrypoint = false), &document(|new| new.tty = true)).unwrap();
    }

    #[test]
    fn what_a_machine_cannot_become_is_refused() {
        type Change = fn(&mut BootDocument);
        let changes: [(&str, Change); 7] = [
            ("kind and init", |new| new.init = InitMode::System),
            ("the root's drives", |new| new.root.as_mut().unwrap().lower = "vdb".to_owned()),
            ("volumes cannot be", |new| {
                new.mounts = serde_json::from_str(r#"[{"drive":"vdc","target":"/data"}]"#).unwrap();
            }),
            ("network interfaces", |new| new.interfaces.clear()),
            ("started before", |new| new.start_entrypoint = false),
            ("terminal and the input", |new| new.stdin = true),
            ("metadata", |new| new.metadata = None),
        ];
        for (word, change) in changes {
            let error = check(&document(|_| ()), &document(change)).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let system = |document: &mut BootDocument| document.init = InitMode::System;
        let old = document(|old| {
            system(old);
            old.start_entrypoint = false;
        });
        let error = check(&old, &document(system)).unwrap_err().to_string();
        assert!(error.contains("beside an init"), "{error}");
    }

    #[test]
    fn the_random_pool_is_reseeded_before_all_else_and_processes_go_on_last() {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.first(), Some(&"random-pool"));
        assert_eq!(names.last(), Some(&"go-on"));
    }
}
