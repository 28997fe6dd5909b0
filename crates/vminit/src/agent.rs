//! The agent of system mode: serves the host beside the image's init, ties the entrypoint's service to the machine's end.

use crate::guest::{Guest, Order};
use crate::handover::{load_document, AGENT_SOCKET};
use crate::inits::Init;
use crate::push::Push;
use crate::reaper::Reaper;
use crate::service::START;
use crate::stream::FdStream;
use crate::teardown::HOST_GRACE;
use crate::transport::Transport;
use crate::util::{lock, start_thread, Context, Deadline};
use crate::{boot, control, entrypoint, lend, log, metadata, sys};
use firebuild_protocol::message::{to_json, PushEvent, Resize};
use firebuild_protocol::{FrameStream, FrameType, ProcessExit, ProtocolError, TaskError};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const HOST_TAKES: Duration = Duration::from_secs(60);
/// For the way to the host to be free after PID 1's exec.
const CHANNEL_TAKES: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// For the service's end to be told when the init is going down already.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What the entrypoint's service tells, and the init.
pub enum News {
    Started(Option<u32>),
    Failed {
        code: String,
        message: String,
    },
    /// `asked`: the init had asked for it, so that it is not the machine's end.
    Ended {
        exit: ProcessExit,
        asked: bool,
    },
    /// The init ends all processes: the machine is going down.
    GoingDown,
    Order(Order),
}

/// The stream of the service that runs now.
type Link = Arc<Mutex<Option<FdStream>>>;

struct Agent {
    guest: Arc<Guest>,
    link: Link,
    init: Init,
    ready: bool,
    /// The exit that is the machine's, once it is known.
    exit: Option<ProcessExit>,
    told_exit: bool,
    asked_init: bool,
}

/// The program; returns its exit code.
pub fn run() -> i32 {
    sys::block_stop_signals();
    match begin() {
        Ok((mut agent, news)) => {
            agent.live(&news);
            0
        }
        Err(error) => {
            log::error(&format!("agent: {error}"));
            1
        }
    }
}

fn begin() -> Result<(Agent, Receiver<News>), TaskError> {
    let mut byte = [0];
    // The end of file: PID 1 has become the init.
    while rustix::io::read(rustix::stdio::stdin(), &mut byte).is_err_and(|errno| errno == rustix::io::Errno::INTR) {}
    boot::protect_from_oom();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).doing("become a subreaper")?;
    let document = load_document()?;
    let profile = metadata::load(&document, Deadline::after(Duration::ZERO))?;
    // Before the other: who has come to that one finds this.
    let inputs = lend::listen()?;
    let listener = listen()?;
    let reaper = Reaper::start()?;
    let (transport, incoming) = connect_anew()?;
    let (push, reply) = Push::connect(Arc::new(transport), Deadline::after(HOST_TAKES))?;
    boot::set_clock(reply.clock_ns);
    let (news, receiver) = channel();
    let (orders, ordered) = channel();
    let guest = Arc::new(Guest::new(reaper, push, document, orders));
    guest.set_configured(profile);
    let link = Link::default();
    let own = Arc::clone(&guest);
    start_thread("control", move || control::serve(&own, &incoming))?;
    let own = news.clone();
    start_thread("orders", move || ordered.into_iter().for_each(|order| tell(&own, News::Order(order))))?;
    let (own, serving) =
        (news.clone(), Services { guest: Arc::clone(&guest), link: Arc::clone(&link), news: news.clone() });
    start_thread("services", move || serving.accept_all(&listener))?;
    start_thread("signals", move || {
        if sys::wait_for_stop_signal().is_ok() {
            tell(&own, News::GoingDown);
        }
    })?;
    let own = Arc::clone(&guest);
    start_thread("inputs", move || {
        let (terminal, open) = (own.document().tty, own.document().stdin);
        lend::take_all(&inputs, |input| own.supervision.attached.begin(Some(input), terminal, open));
    })?;
    let (_, init) = Init::find()?;
    log::note("agent: beside the init");
    Ok((Agent { guest, link, init, ready: false, exit: None, told_exit: false, asked_init: false }, receiver))
}

fn tell(news: &Sender<News>, one: News) {
    // The main thread is gone only when the program is.
    let _ = news.send(one);
}

/// PID 1's hold on the port or the socket ends with its exec, a moment later than its pipe.
fn connect_anew() -> Result<(Transport, Receiver<OwnedFd>), TaskError> {
    let deadline = Deadline::after(CHANNEL_TAKES);
    loop {
        match Transport::start(deadline) {
            Err(_) if !deadline.has_passed() => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}

fn listen() -> Result<OwnedFd, TaskError> {
    const BACKLOG: i32 = 16;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .doing("open the agent's socket")?;
    let address = SocketAddrUnix::new(AGENT_SOCKET).doing("name the agent's socket")?;
    rustix::net::bind(&socket, &address).doing("bind the agent's socket")?;
    rustix::net::listen(&socket, BACKLOG).doing("listen on the agent's socket")?;
    Ok(socket)
}

impl Agent {
    fn live(&mut self, news: &Receiver<News>) {
        let mut kill_at: Option<Deadline> = None;
        loop {
            let one = match kill_at {
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => news.recv_timeout(deadline.remaining()),
            };
            match one {
                Ok(News::GoingDown) | Err(RecvTimeoutError::Disconnected) => return self.leave(news),
                Ok(News::Order(Order::Stop { signal, timeout })) => {
                    self.halt_service();
                    if self.signal_service(signal) {
                        log::note(&format!("stop with signal {signal}"));
                        kill_at = Some(Deadline::after(timeout));
                    } else {
                        self.ask_init();
                    }
                }
                Ok(News::Order(Order::Restart(restart))) => self.tell_service(&PushEvent::Policy { restart }),
                Ok(News::Order(Order::Resumed { .. })) => boot::tell_ready(&self.guest, self.guest.supervision.pid()),
                Ok(News::Order(Order::Signal(signal))) => {
                    self.signal_service(signal);
                }
                Ok(News::Order(Order::Start)) => self.start_service(),
                Ok(News::Order(_)) => self.ask_init(),
                Ok(one) => self.take(one),
                Err(RecvTimeoutError::Timeout) => {
                    kill_at = None;
                    self.signal_service(libc::SIGKILL);
                    // Its last output must not wait for ever for a host that does not read.
                    self.guest.give_up_after(HOST_GRACE);
                }
            }
        }
    }

    /// What the service tells.
    fn take(&mut self, one: News) {
        match one {
            News::Started(pid) => {
                self.guest.supervision.set_pid(pid);
                let document = self.guest.document();
                if pid.is_some() && !document.tty && !document.stdin {
                    // Else its input has begun it.
                    self.guest.supervision.attached.begin(None, false, false);
                }
                if !self.ready {
                    self.ready = true;
                    boot::tell_ready(&self.guest, pid);
                    if pid.is_none() && !document.await_attach {
                        // Nobody else is there to do it: an entrypoint's health is checked by its service.
                        if let Ok(profile) = self.guest.profile() {
                            entrypoint::check_health(&self.guest, &profile);
                        }
                    }
                }
            }
            News::Failed { code, message } => {
                self.guest.supervision.attached.fail_as(&code, &message);
                self.guest.push.event(&PushEvent::Failed { code, message });
            }
            News::Ended { exit, asked } => {
                self.guest.supervision.set_pid(None);
                self.guest.supervision.attached.close_input();
                self.exit = Some(exit);
                if !asked {
                    self.tell_exit();
                    self.ask_init();
                }
            }
            News::GoingDown | News::Order(_) => {}
        }
    }

    /// Somebody has attached: the service waits for that, with its size.
    fn start_service(&self) {
        if let Some((rows, cols)) = self.guest.supervision.attached.told_size() {
            if let Some(stream) = lock(&self.link).as_mut() {
                // As below.
                let _ = stream.write_frame(FrameType::Resize, &to_json(&Resize { rows, cols }));
            }
        }
        self.tell_service(&PushEvent::Step { name: START.to_owned() });
    }

    /// A user's stop: the service starts nothing again.
    fn halt_service(&self) {
        self.tell_service(&PushEvent::Step { name: "stop".to_owned() });
    }

    fn tell_service(&self, event: &PushEvent) {
        if let Some(stream) = lock(&self.link).as_mut() {
            // One that is gone starts nothing either.
            let _ = stream.write_frame(FrameType::Event, &to_json(event));
        }
    }

    fn signal_service(&self, signal: i32) -> bool {
        let mut link = lock(&self.link);
        let Some(stream) = link.as_mut() else { return false };
        let payload = format!("{{\"signal\":{signal}}}");
        self.guest.supervision.pid().is_some() && stream.write_frame(FrameType::Signal, payload.as_bytes()).is_ok()
    }

    /// Once: an init that is going down is not asked again.
    fn ask_init(&mut self) {
        if std::mem::replace(&mut self.asked_init, true) {
            return;
        }
        if self.guest.hold.is_held() {
            // The init stands still, and so does the entrypoint.
            if self.guest.supervision.pid().is_some() {
                self.exit = Some(ProcessExit { code: 128 + libc::SIGKILL, signal: Some(libc::SIGKILL) });
            }
            self.tell_exit();
            self.guest.push.close(HOST_GRACE);
            crate::teardown::reboot();
        }
        boot::step(&self.guest, "stop-init");
        self.guest.supervision.halt();
        if let Err(error) = self.init.request_shutdown() {
            log::error(&format!("the init does not go down: {error}"));
            self.tell_exit();
            self.guest.push.close(HOST_GRACE);
            crate::teardown::reboot();
        }
    }

    /// A machine that goes down with no entrypoint, or before one has ended, ends well.
    fn tell_exit(&mut self) {
        if !std::mem::replace(&mut self.told_exit, true) {
            let exit = self.exit.unwrap_or(ProcessExit { code: 0, signal: None });
            self.guest.supervision.attached.end(exit);
            self.guest.push.exit(exit);
        }
    }

    /// The init ends all processes, this one too.
    fn leave(&mut self, news: &Receiver<News>) {
        self.guest.give_up_after(LAST_WORDS + HOST_GRACE);
        self.guest.supervision.halt();
        let deadline = Deadline::after(LAST_WORDS);
        while lock(&self.link).is_some() {
            match news.recv_timeout(deadline.remaining()) {
                Ok(one) => self.take(one),
                Err(_) => break,
            }
        }
        while let Ok(one) = news.try_recv() {
            self.take(one);
        }
        self.tell_exit();
        boot::step(&self.guest, "unmount");
        self.guest.push.close(HOST_GRACE);
    }
}

/// Takes in what services tell over the agent's socket.
#[derive(Clone)]
struct Services {
    guest: Arc<Guest>,
    link: Link,
    news: Sender<News>,
}

impl Services {
    fn accept_all(&self, listener: &OwnedFd) {
        loop {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(fd) => {
                    let own = self.clone();
                    if let Err(error) = start_thread("service", move || own.serve(fd)) {
                        log::error(&error.to_string());
                    }
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn serve(&self, fd: OwnedFd) {
        let mut stream = FdStream::new(fd);
        match stream.try_clone() {
            Ok(own) => *lock(&self.link) = Some(own),
            Err(error) => log::error(&format!("service: {error}")),
        }
        let mut asked = false;
        while self.take_frame(&mut stream, &mut asked).is_ok() {}
        let mut link = lock(&self.link);
        // Another may have begun meanwhile.
        if link.as_ref().is_some_and(|known| same_socket(known, &stream)) {
            *link = None;
        }
    }

    fn take_frame(&self, stream: &mut FdStream, asked: &mut bool) -> Result<(), ProtocolError> {
        let frame = stream.read_frame()?;
        match frame.frame_type {
            FrameType::Stdout | FrameType::Stderr => {
                self.guest.push.send(frame.frame_type, &frame.payload);
                self.guest.supervision.attached.send(frame.frame_type, &frame.payload);
            }
            FrameType::Exit => {
                let exit: firebuild_protocol::message::Exit = frame.message()?;
                let exit = ProcessExit { code: exit.code, signal: exit.signal };
                // The link goes first: who hears of the end must not signal a service that is gone.
                *lock(&self.link) = None;
                tell(&self.news, News::Ended { exit, asked: *asked });
            }
            FrameType::Event => match frame.message()? {
                PushEvent::Ready { entrypoint_pid, .. } => tell(&self.news, News::Started(entrypoint_pid)),
                PushEvent::Failed { code, message } => tell(&self.news, News::Failed { code, message }),
                PushEvent::Step { .. } => *asked = true,
                event @ (PushEvent::Restart { .. } | PushEvent::Health { .. }) => self.guest.push.event(&event),
                PushEvent::Policy { .. } | PushEvent::Other => {}
            },
            other => return Err(ProtocolError::Unexpected(format!("{} frame", other.name()))),
        }
        Ok(())
    }
}

/// Whether two descriptors are one socket.
fn same_socket(one: &FdStream, other: &FdStream) -> bool {
    let inode = |stream: &FdStream| rustix::fs::fstat(stream.as_fd()).map(|stat| stat.st_ino).ok();
    inode(one).is_some() && inode(one) == inode(other)
}
