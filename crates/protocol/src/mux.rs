//! The state behind mux records: which streams live, and how much each may still send. No input or output.

use crate::record::{Record, WINDOW};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Which end of the port this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Host,
    Guest,
}

/// What a record means to the owner of the streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MuxEvent {
    /// Both sides have said HELLO: streams may be opened. All earlier streams are void.
    Greeted,
    /// The peer opens a stream: answer with [`Mux::accept`] or [`Mux::reset`].
    Opened { stream: u32, port: u32 },
    /// The peer took the stream that we opened.
    Accepted { stream: u32 },
    /// Bytes came. Say [`Mux::consumed`] as they are passed on.
    Data { stream: u32, payload: Vec<u8> },
    /// The peer sends no more.
    Finished { stream: u32 },
    /// The stream is gone in both directions; it was refused, aborted or broke the rules.
    Reset { stream: u32 },
    /// More may be sent.
    Writable { stream: u32 },
}

/// The peer speaks another version: close the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionMismatch(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// We said OPEN.
    Opening,
    /// The peer said OPEN.
    Offered,
    Live,
}

#[derive(Debug)]
struct Stream {
    phase: Phase,
    /// What we may still send.
    send_window: u32,
    /// What the peer may still send.
    receive_window: u32,
    /// Consumed, not granted again yet.
    ungranted: u32,
    sent_fin: bool,
    got_fin: bool,
}

impl Stream {
    fn new(phase: Phase) -> Self {
        Self { phase, send_window: WINDOW, receive_window: WINDOW, ungranted: 0, sent_fin: false, got_fin: false }
    }
}

/// One end of the mux. Records to send are collected in a queue: [`Mux::next_output`].
#[derive(Debug)]
pub struct Mux {
    side: Side,
    greeted: bool,
    awaiting_hello: bool,
    streams: BTreeMap<u32, Stream>,
    next_own: u32,
    /// The highest id that the peer has opened since the last HELLO.
    highest_peer: u32,
    /// Ids below it that the peer has not used yet: several of its threads may open streams at once.
    skipped: BTreeSet<u32>,
    output: VecDeque<Record>,
}

impl Mux {
    pub fn new(side: Side) -> Self {
        let next_own = first_id(side);
        Self {
            side,
            greeted: false,
            awaiting_hello: false,
            streams: BTreeMap::new(),
            next_own,
            highest_peer: 0,
            skipped: BTreeSet::new(),
            output: VecDeque::new(),
        }
    }

    /// Say HELLO: all streams are void. The guest does so when it opens the port, the host after a restore.
    pub fn hello(&mut self) {
        self.void();
        self.greeted = false;
        self.awaiting_hello = true;
        self.output.push_back(Record::Hello { version: crate::PROTOCOL_VERSION });
    }

    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// The next record to send.
    pub fn next_output(&mut self) -> Option<Record> {
        self.output.pop_front()
    }

    /// How many records wait to be sent.
    pub fn output_length(&self) -> usize {
        self.output.len()
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Open a stream; None before the greeting or when ids have run out.
    pub fn open(&mut self, port: u32) -> Option<u32> {
        if !self.greeted {
            return None;
        }
        let stream = self.next_own;
        self.next_own = self.next_own.checked_add(2)?;
        self.streams.insert(stream, Stream::new(Phase::Opening));
        self.output.push_back(Record::Open { stream, port });
        Some(stream)
    }

    /// Take a stream that the peer has opened. False if it is gone.
    pub fn accept(&mut self, stream: u32) -> bool {
        match self.streams.get_mut(&stream) {
            Some(state) if state.phase == Phase::Offered => {
                state.phase = Phase::Live;
                self.output.push_back(Record::Accept { stream });
                true
            }
            _ => false,
        }
    }

    /// Refuse or abort a stream.
    pub fn reset(&mut self, stream: u32) {
        if self.streams.remove(&stream).is_some() {
            self.output.push_back(Record::Reset { stream });
        }
    }

    /// How many bytes may be sent on a stream now.
    pub fn send_capacity(&self, stream: u32) -> usize {
        match self.streams.get(&stream) {
            Some(state) if state.phase == Phase::Live && !state.sent_fin => state.send_window as usize,
            _ => 0,
        }
    }

    /// Queue DATA; returns how much of it the window took.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) -> usize {
        let capacity = self.send_capacity(stream);
        let Some(state) = self.streams.get_mut(&stream) else { return 0 };
        let taken = bytes.get(..capacity.min(bytes.len())).unwrap_or_default();
        for chunk in taken.chunks(MAX_CHUNK) {
            self.output.push_back(Record::Data { stream, payload: chunk.to_vec() });
        }
        state.send_window = state.send_window.saturating_sub(taken.len() as u32);
        taken.len()
    }

    /// We send no more on this stream.
    pub fn finish(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if state.phase != Phase::Live {
            self.reset(stream);
            return;
        }
        if !state.sent_fin {
            state.sent_fin = true;
            self.output.push_back(Record::Fin { stream });
        }
        self.drop_if_done(stream);
    }

    /// Received bytes were passed on: grants them to the peer again, in batches.
    pub fn consumed(&mut self, stream: u32, bytes: usize) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let outstanding = WINDOW - state.receive_window - state.ungranted;
        state.ungranted += u32::try_from(bytes).unwrap_or(u32::MAX).min(outstanding);
        if state.ungranted >= WINDOW / 4 && !state.got_fin {
            let bytes = std::mem::take(&mut state.ungranted);
            state.receive_window += bytes;
            self.output.push_back(Record::Window { stream, bytes });
        }
    }

    /// Take in one record.
    pub fn on_record(&mut self, record: Record) -> Result<Option<MuxEvent>, VersionMismatch> {
        if let Record::Hello { version } = record {
            return self.on_hello(version).map(Some);
        }
        if !self.greeted {
            return Ok(None);
        }
        Ok(match record {
            Record::Open { stream, port } => self.on_open(stream, port),
            Record::Accept { stream } => self.on_accept(stream),
            Record::Reset { stream } => self.streams.remove(&stream).map(|_| MuxEvent::Reset { stream }),
            Record::Data { stream, payload } => self.on_data(stream, payload),
            Record::Fin { stream } => self.on_fin(stream),
            Record::Window { stream, bytes } => self.on_window(stream, bytes),
            Record::Hello { .. } => None,
        })
    }

    /// A record of a stream was malformed though its framing was intact.
    pub fn on_violation(&mut self, stream: u32) -> Option<MuxEvent> {
        self.output.push_back(Record::Reset { stream });
        self.streams.remove(&stream).map(|_| MuxEvent::Reset { stream })
    }

    fn on_hello(&mut self, version: u32) -> Result<MuxEvent, VersionMismatch> {
        if version != crate::PROTOCOL_VERSION {
            return Err(VersionMismatch(version));
        }
        self.void();
        if !self.awaiting_hello {
            self.output.push_back(Record::Hello { version });
        }
        self.awaiting_hello = false;
        self.greeted = true;
        Ok(MuxEvent::Greeted)
    }

    fn on_open(&mut self, stream: u32, port: u32) -> Option<MuxEvent> {
        let is_peers = stream % 2 != self.next_own % 2;
        if !is_peers || !self.take_peer_id(stream) {
            return self.on_violation(stream);
        }
        self.streams.insert(stream, Stream::new(Phase::Offered));
        Some(MuxEvent::Opened { stream, port })
    }

    /// False if the peer has used that id before, or leaves out too many.
    fn take_peer_id(&mut self, stream: u32) -> bool {
        if stream <= self.highest_peer {
            return self.skipped.remove(&stream);
        }
        let first = if self.highest_peer == 0 { 2 - stream % 2 } else { self.highest_peer + 2 };
        let gap = (stream - first) / 2;
        if gap as usize + self.skipped.len() > MOST_SKIPPED {
            return false;
        }
        self.skipped.extend((first..stream).step_by(2));
        self.highest_peer = stream;
        true
    }

    fn on_accept(&mut self, stream: u32) -> Option<MuxEvent> {
        match self.streams.get_mut(&stream) {
            Some(state) if state.phase == Phase::Opening => {
                state.phase = Phase::Live;
                Some(MuxEvent::Accepted { stream })
            }
            Some(_) => self.on_violation(stream),
            None => self.on_unknown(stream),
        }
    }

    fn on_data(&mut self, stream: u32, payload: Vec<u8>) -> Option<MuxEvent> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        match self.streams.get_mut(&stream) {
            Some(state) if state.phase == Phase::Live && !state.got_fin && length <= state.receive_window => {
                state.receive_window -= length;
                Some(MuxEvent::Data { stream, payload })
            }
            Some(_) => self.on_violation(stream),
            None => self.on_unknown(stream),
        }
    }

    fn on_fin(&mut self, stream: u32) -> Option<MuxEvent> {
        match self.streams.get_mut(&stream) {
            Some(state) if state.phase == Phase::Live && !state.got_fin => {
                state.got_fin = true;
                self.drop_if_done(stream);
                Some(MuxEvent::Finished { stream })
            }
            Some(_) => self.on_violation(stream),
            None => self.on_unknown(stream),
        }
    }

    fn on_window(&mut self, stream: u32, bytes: u32) -> Option<MuxEvent> {
        match self.streams.get_mut(&stream) {
            Some(state) if state.phase == Phase::Live && state.send_window.saturating_add(bytes) <= WINDOW => {
                state.send_window += bytes;
                Some(MuxEvent::Writable { stream })
            }
            Some(_) => self.on_violation(stream),
            None => self.on_unknown(stream),
        }
    }

    /// A record for a stream that ended a moment ago is ignored; one that never was is refused.
    fn on_unknown(&mut self, stream: u32) -> Option<MuxEvent> {
        let is_own = stream % 2 == self.next_own % 2;
        let was_open = if is_own {
            stream < self.next_own
        } else {
            stream <= self.highest_peer && !self.skipped.contains(&stream)
        };
        if !was_open {
            self.output.push_back(Record::Reset { stream });
        }
        None
    }

    fn drop_if_done(&mut self, stream: u32) {
        if self.streams.get(&stream).is_some_and(|state| state.sent_fin && state.got_fin) {
            self.streams.remove(&stream);
        }
    }

    fn void(&mut self) {
        self.streams.clear();
        self.output.clear();
        self.highest_peer = 0;
        self.skipped.clear();
        self.next_own = first_id(self.side);
    }
}

/// DATA payloads that we send: with its header such a record fits one virtio-serial buffer (32 KiB),
/// so that a record is written whole or not at all.
pub const MAX_CHUNK: usize = 32_768 - crate::record::HEADER_LENGTH;

/// How many ids a peer may leave out for a while.
pub const MOST_SKIPPED: usize = 1024;

fn first_id(side: Side) -> u32 {
    match side {
        Side::Host => 1,
        Side::Guest => 2,
    }
}
