//! Two ends of the mux state joined by a queue, and each end against a peer that breaks the rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use firebuild_protocol::mux::{Mux, MuxEvent, Side, VersionMismatch, MAX_CHUNK};
use firebuild_protocol::record::{Record, WINDOW};

/// Carry records from one end to the other until neither has any; returns the events of the receiver.
fn carry(from: &mut Mux, to: &mut Mux) -> Vec<MuxEvent> {
    let mut events = Vec::new();
    while let Some(record) = from.next_output() {
        events.extend(to.on_record(record).unwrap());
    }
    events
}

fn greeted() -> (Mux, Mux) {
    let (mut guest, mut host) = (Mux::new(Side::Guest), Mux::new(Side::Host));
    guest.hello();
    assert_eq!(carry(&mut guest, &mut host), [MuxEvent::Greeted]);
    assert_eq!(carry(&mut host, &mut guest), [MuxEvent::Greeted]);
    assert!(!guest.has_output() && !host.has_output());
    (guest, host)
}

fn with_stream() -> (Mux, Mux, u32) {
    let (mut guest, mut host) = greeted();
    let stream = host.open(1024).unwrap();
    assert_eq!(carry(&mut host, &mut guest), [MuxEvent::Opened { stream, port: 1024 }]);
    assert!(guest.accept(stream));
    assert_eq!(carry(&mut guest, &mut host), [MuxEvent::Accepted { stream }]);
    (guest, host, stream)
}

#[test]
fn nothing_before_the_greeting() {
    let mut host = Mux::new(Side::Host);
    assert_eq!(host.open(1), None);
    assert_eq!(host.on_record(Record::Open { stream: 2, port: 1025 }), Ok(None));
    assert!(!host.has_output());
}

#[test]
fn ids_are_odd_for_the_host_and_even_for_the_guest() {
    let (mut guest, mut host) = greeted();
    assert_eq!((host.open(1), host.open(1)), (Some(1), Some(3)));
    assert_eq!((guest.open(1), guest.open(1)), (Some(2), Some(4)));
}

#[test]
fn another_version_is_told() {
    let mut guest = Mux::new(Side::Guest);
    guest.hello();
    assert_eq!(guest.on_record(Record::Hello { version: 2 }), Err(VersionMismatch(2)));
}

#[test]
fn a_window_is_never_exceeded_and_is_granted_again() {
    let (mut guest, mut host, stream) = with_stream();
    let bytes = vec![1_u8; WINDOW as usize + 5];
    assert_eq!(guest.send(stream, &bytes), WINDOW as usize);
    assert_eq!(guest.send(stream, &bytes), 0);
    let mut got = 0;
    for event in carry(&mut guest, &mut host) {
        let MuxEvent::Data { payload, .. } = event else { panic!("{event:?}") };
        assert!(payload.len() <= MAX_CHUNK);
        got += payload.len();
    }
    assert_eq!(got, WINDOW as usize);
    host.consumed(stream, 10);
    assert!(!host.has_output(), "small grants are batched");
    host.consumed(stream, WINDOW as usize);
    assert_eq!(carry(&mut host, &mut guest), [MuxEvent::Writable { stream }]);
    assert_eq!(guest.send_capacity(stream), WINDOW as usize);
}

#[test]
fn data_beyond_the_window_resets_the_stream() {
    let (mut guest, _, stream) = with_stream();
    for _ in 0..4 {
        let record = Record::Data { stream, payload: vec![0; 65_536] };
        assert!(matches!(guest.on_record(record), Ok(Some(MuxEvent::Data { .. }))));
    }
    let event = guest.on_record(Record::Data { stream, payload: vec![0] });
    assert_eq!(event, Ok(Some(MuxEvent::Reset { stream })));
    assert_eq!(guest.next_output(), Some(Record::Reset { stream }));
    assert_eq!(guest.on_record(Record::Data { stream, payload: vec![0] }), Ok(None), "a moment later: ignored");
    assert!(!guest.has_output());
}

#[test]
fn half_close_and_end() {
    let (mut guest, mut host, stream) = with_stream();
    host.finish(stream);
    assert_eq!(carry(&mut host, &mut guest), [MuxEvent::Finished { stream }]);
    assert_eq!(host.send(stream, b"x"), 0);
    assert_eq!(guest.send(stream, b"answer"), 6);
    guest.finish(stream);
    assert_eq!(carry(&mut guest, &mut host).last(), Some(&MuxEvent::Finished { stream }));
    host.consumed(stream, 6);
    assert!(!host.has_output() && !guest.has_output());
    assert_eq!(host.on_record(Record::Fin { stream }), Ok(None));
}

#[test]
fn records_of_streams_that_never_were_are_refused() {
    let (mut guest, _) = greeted();
    for record in [
        Record::Data { stream: 9, payload: vec![1] },
        Record::Data { stream: 2, payload: vec![1] },
        Record::Accept { stream: 9 },
        Record::Fin { stream: 9 },
        Record::Window { stream: 9, bytes: 1 },
    ] {
        assert_eq!(guest.on_record(record.clone()), Ok(None), "{record:?}");
        assert!(matches!(guest.next_output(), Some(Record::Reset { .. })), "{record:?}");
    }
}

#[test]
fn an_id_is_the_openers_and_never_used_again() {
    let (mut guest, mut host, stream) = with_stream();
    host.reset(stream);
    assert_eq!(carry(&mut host, &mut guest), [MuxEvent::Reset { stream }]);
    for id in [stream, 2] {
        assert_eq!(guest.on_record(Record::Open { stream: id, port: 1024 }), Ok(None));
        assert_eq!(guest.next_output(), Some(Record::Reset { stream: id }));
    }
}

#[test]
fn ids_may_come_out_of_order_but_once() {
    let (mut guest, _) = greeted();
    let mut open = |stream| guest.on_record(Record::Open { stream, port: 1024 }).unwrap();
    for stream in [5, 1, 3, 11, 7] {
        assert_eq!(open(stream), Some(MuxEvent::Opened { stream, port: 1024 }));
    }
    assert_eq!(open(3), Some(MuxEvent::Reset { stream: 3 }));
    assert_eq!(open(1), Some(MuxEvent::Reset { stream: 1 }));
    assert_eq!(open(1), None);
    assert_eq!(open(9), Some(MuxEvent::Opened { stream: 9, port: 1024 }));
    assert_eq!(open(100_001), None, "too many left out");
    assert_eq!(open(13), Some(MuxEvent::Opened { stream: 13, port: 1024 }));
}

#[test]
fn data_before_accept_is_a_violation() {
    let (mut guest, mut host) = greeted();
    let stream = host.open(1024).unwrap();
    assert_eq!(host.send(stream, b"early"), 0);
    carry(&mut host, &mut guest);
    let event = guest.on_record(Record::Data { stream, payload: vec![1] });
    assert_eq!(event, Ok(Some(MuxEvent::Reset { stream })));
}

#[test]
fn a_window_above_the_whole_is_a_violation() {
    let (mut guest, _, stream) = with_stream();
    assert_eq!(guest.on_record(Record::Window { stream, bytes: 1 }), Ok(Some(MuxEvent::Reset { stream })));
}

#[test]
fn a_restore_voids_everything() {
    let (mut guest, mut host, stream) = with_stream();
    let mine = guest.open(1025).unwrap();
    host.hello();
    assert_eq!(carry(&mut host, &mut guest), [MuxEvent::Greeted]);
    assert_eq!(guest.send_capacity(stream) + guest.send_capacity(mine), 0);
    assert_eq!(carry(&mut guest, &mut host), [MuxEvent::Greeted]);
    assert_eq!((guest.open(1025), host.open(1024)), (Some(2), Some(1)));
}
