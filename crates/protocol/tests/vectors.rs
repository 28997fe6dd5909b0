//! The golden vectors in `protocol/vectors`, which the Python side tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use firebuild_protocol::frame::{read_frame, write_frame, FrameType};
use firebuild_protocol::message::{ContinueRequest, PlainRequest, ResumeRequest};
use firebuild_protocol::record::{self, Decoder, Record, RecordError};
use firebuild_protocol::{Frame, ProtocolError};
use serde_json::Value;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn vectors(text: &str) -> Vec<Value> {
    serde_json::from_str::<Value>(text).unwrap().as_array().unwrap().clone()
}

fn read_all(mut bytes: &[u8]) -> Result<Vec<Frame>, ProtocolError> {
    let mut frames = Vec::new();
    loop {
        match read_frame(&mut bytes) {
            Ok(frame) => frames.push(frame),
            Err(ProtocolError::Closed) => return Ok(frames),
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn requests_about_snapshots_are_understood_and_unknown_keys_are_refused() {
    let request = |name: &str| {
        let all = vectors(include_str!("../../../protocol/vectors/frames.json"));
        all.into_iter().find(|vector| vector["name"] == name).unwrap()["frames"][0]["json"].clone()
    };
    let resume: ResumeRequest = serde_json::from_value(request("resume request")).unwrap();
    assert_eq!((resume.clock_ns, resume.seed.len()), (1_700_000_000_123_456_789, 128));
    assert_eq!(resume.boot.interfaces[0].gateway.as_deref(), Some("192.168.127.1"));
    let mut more = request("resume request");
    more["force"] = Value::Bool(true);
    assert!(serde_json::from_value::<ResumeRequest>(more).is_err());
    serde_json::from_value::<PlainRequest>(request("pause-for-snapshot request")).unwrap();
    let go_on: ContinueRequest = serde_json::from_value(request("continue request")).unwrap();
    assert_eq!(go_on.clock_ns, resume.clock_ns);
}

#[test]
fn frames() {
    let vectors = vectors(include_str!("../../../protocol/vectors/frames.json"));
    assert!(vectors.len() > 40);
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        let bytes = unhex(vector["hex"].as_str().unwrap());
        match (read_all(&bytes), vector["error"].as_str()) {
            (Err(error), Some(expected)) => assert_eq!(error.name(), expected, "{name}"),
            (Ok(frames), None) => check_frames(name, &frames, &vector, &bytes),
            (got, expected) => panic!("{name}: {got:?}, expected {expected:?}"),
        }
    }
}

fn check_frames(name: &str, frames: &[Frame], vector: &Value, bytes: &[u8]) {
    let expected = vector["frames"].as_array().unwrap();
    assert_eq!(frames.len(), expected.len(), "{name}");
    let mut again = Vec::new();
    for (frame, expected) in frames.iter().zip(expected) {
        assert_eq!(frame.frame_type.name(), expected["type"].as_str().unwrap(), "{name}");
        if frame.frame_type.is_json() {
            assert_eq!(Value::Object(frame.object().unwrap()), expected["json"], "{name}");
        } else {
            assert_eq!(hex(&frame.payload), expected["payload_hex"].as_str().unwrap(), "{name}");
        }
        write_frame(&mut again, frame.frame_type, &frame.payload).unwrap();
    }
    assert_eq!(again, bytes, "{name}: encoding");
}

#[test]
fn events_of_health_mean_what_they_say() {
    use firebuild_protocol::message::{to_json, HealthResult, HealthStatus, PushEvent};
    let output = "killed: it took longer than 2000 ms\npart".to_owned();
    let result = HealthResult { code: -1, duration_ms: 2003, output };
    let expected = [
        PushEvent::Health { status: HealthStatus::Starting, failing_streak: 0, result: None },
        PushEvent::Health { status: HealthStatus::Unhealthy, failing_streak: 3, result: Some(result) },
    ];
    let vectors = vectors(include_str!("../../../protocol/vectors/frames.json"));
    let named = |vector: &&Value| vector["name"].as_str().unwrap().starts_with("event health");
    let frames: Vec<Frame> = vectors
        .iter()
        .filter(named)
        .flat_map(|vector| read_all(&unhex(vector["hex"].as_str().unwrap())).unwrap())
        .collect();
    assert_eq!(frames.len(), expected.len());
    for (frame, event) in frames.iter().zip(&expected) {
        assert_eq!(&frame.message::<PushEvent>().unwrap(), event);
        assert_eq!(to_json(event), frame.payload);
    }
}

#[test]
fn attach() {
    use firebuild_protocol::message::{to_json, AttachReply, AttachRequest};
    let vectors = vectors(include_str!("../../../protocol/vectors/frames.json"));
    let frame_of = |name: &str| {
        let vector = vectors.iter().find(|vector| vector["name"] == name).unwrap();
        read_all(&unhex(vector["hex"].as_str().unwrap())).unwrap().remove(0)
    };
    let request: AttachRequest = frame_of("attach request").message().unwrap();
    assert_eq!(request, AttachRequest { op: "attach".to_owned(), rows: 24, cols: 80 });
    assert_eq!(to_json(&request), frame_of("attach request").payload);
    let reply = AttachReply { tty: true, stdin: false };
    assert_eq!(frame_of("attach reply").message::<AttachReply>().unwrap(), reply);
    assert_eq!(to_json(&reply), frame_of("attach reply").payload);
}

#[test]
fn the_largest_frame_passes_and_one_byte_more_does_not() {
    let payload = vec![7_u8; firebuild_protocol::frame::MAX_PAYLOAD];
    let mut bytes = Vec::new();
    write_frame(&mut bytes, FrameType::Data, &payload).unwrap();
    assert_eq!(read_all(&bytes).unwrap()[0].payload, payload);
    let too_long = vec![7_u8; payload.len() + 1];
    assert!(matches!(write_frame(&mut Vec::new(), FrameType::Data, &too_long), Err(ProtocolError::TooLong(_))));
}

#[test]
fn records() {
    let vectors = vectors(include_str!("../../../protocol/vectors/mux.json"));
    assert!(vectors.len() > 30);
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        let bytes = unhex(vector["hex"].as_str().unwrap());
        for step in [1, 7, bytes.len().max(1)] {
            match (decode_all(&bytes, step), vector["error"].as_str()) {
                (Err(error), Some(expected)) => {
                    assert_eq!(error.name(), expected, "{name}");
                    let framing = if error.stream().is_some() { "intact" } else { "lost" };
                    assert_eq!(framing, vector["framing"].as_str().unwrap(), "{name}");
                }
                (Ok(records), None) => check_records(name, &records, &vector, &bytes),
                (got, expected) => panic!("{name}: {got:?}, expected {expected:?}"),
            }
        }
    }
}

fn decode_all(bytes: &[u8], step: usize) -> Result<Vec<Record>, RecordError> {
    let mut decoder = Decoder::default();
    let mut records = Vec::new();
    for chunk in bytes.chunks(step) {
        decoder.push(chunk);
        while let Some(record) = decoder.next_record()? {
            records.push(record);
        }
    }
    decoder.finish()?;
    Ok(records)
}

fn check_records(name: &str, records: &[Record], vector: &Value, bytes: &[u8]) {
    let described: Vec<Value> = records.iter().map(describe).collect();
    assert_eq!(Value::Array(described), vector["records"], "{name}");
    let mut again = Vec::new();
    records.iter().for_each(|record| record::encode(record, &mut again));
    assert_eq!(again, bytes, "{name}: encoding");
}

fn describe(record: &Record) -> Value {
    use serde_json::json;
    match record {
        Record::Open { stream, port } => json!({"kind": "OPEN", "stream": stream, "port": port}),
        Record::Accept { stream } => json!({"kind": "ACCEPT", "stream": stream}),
        Record::Reset { stream } => json!({"kind": "RESET", "stream": stream}),
        Record::Data { stream, payload } => json!({"kind": "DATA", "stream": stream, "payload_hex": hex(payload)}),
        Record::Fin { stream } => json!({"kind": "FIN", "stream": stream}),
        Record::Window { stream, bytes } => json!({"kind": "WINDOW", "stream": stream, "bytes": bytes}),
        Record::Hello { version } => json!({"kind": "HELLO", "stream": 0, "version": version}),
    }
}

#[test]
fn a_decoder_goes_on_after_an_intact_error() {
    let mut bytes = vec![5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9];
    record::encode(&Record::Accept { stream: 3 }, &mut bytes);
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    assert_eq!(decoder.next_record(), Err(RecordError::BadLength(1)));
    assert_eq!(decoder.next_record(), Ok(Some(Record::Accept { stream: 3 })));
    assert_eq!(decoder.next_record(), Ok(None));
}
