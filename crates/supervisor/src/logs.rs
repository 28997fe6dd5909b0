//! Bounded log files: the raw console log, and guest output in the CRI log format.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::clock;
use crate::config::LogConfig;

/// Longest content of one CRI record; longer lines are continued in further records tagged `P`.
const MAX_RECORD_BYTES: usize = 16 * 1024;
/// How long the start of a line may wait for its end before it is written as a partial record.
const PARTIAL_DELAY: Duration = Duration::from_millis(200);

/// An append-only file that becomes `PATH.1` when it is full; together never more than twice `max_bytes`.
///
/// A failing disk must not stop a machine: bytes that cannot be written are counted and dropped.
pub struct RotatingLog {
    path: PathBuf,
    max_bytes: u64,
    size: u64,
    file: File,
    lost_bytes: u64,
}

impl RotatingLog {
    /// Opens (or creates, mode 0600) the log for appending.
    pub fn open(config: &LogConfig) -> io::Result<Self> {
        let file = open_append(&config.path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: config.path.clone(), max_bytes: config.max_bytes, size, file, lost_bytes: 0 })
    }

    /// Appends bytes, rotating between pieces, so that each file stays within its limit.
    pub fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.size >= self.max_bytes {
                self.rotate();
            }
            let room = usize::try_from(self.max_bytes.saturating_sub(self.size)).unwrap_or(0);
            let (now, later) = bytes.split_at(room.min(bytes.len()).max(1));
            self.write(now);
            bytes = later;
        }
    }

    /// Appends one record, which is never split over two files.
    pub fn append_whole(&mut self, record: &[u8]) {
        let length = u64::try_from(record.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.max_bytes {
            self.rotate();
        }
        self.write(record);
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    fn write(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // Counted also when it fails: a full disk must not turn the limit off.
        self.size = self.size.saturating_add(length);
        if self.file.write_all(bytes).is_err() {
            self.lost_bytes = self.lost_bytes.saturating_add(length);
        }
    }

    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        let renamed = std::fs::rename(&self.path, &old);
        match renamed.and_then(|()| open_append(&self.path)) {
            Ok(file) => self.file = file,
            // The folder may be gone; an emptied file still keeps the limit.
            Err(_) => {
                let _ = self.file.set_len(0);
            }
        }
        self.size = 0;
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Which of the guest's output streams a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Writes guest output as CRI log lines: `<RFC3339Nano> stdout|stderr P|F <bytes>\n`
/// (Kubernetes, "CRI container logging", the format of containerd's `pkg/cri/io/logger.go`).
pub struct CriLog {
    log: RotatingLog,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    partial_since: Option<Instant>,
}

impl CriLog {
    pub fn new(log: RotatingLog) -> Self {
        Self { log, stdout: Vec::new(), stderr: Vec::new(), partial_since: None }
    }

    /// Takes output; whole lines are written at once, the start of a line waits a moment for its end.
    pub fn append(&mut self, source: Source, mut bytes: &[u8]) {
        let mut pending = std::mem::take(self.pending(source));
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            pending.extend_from_slice(line);
            self.write_line(source, &pending, b'F');
            pending.clear();
            bytes = rest.get(1..).unwrap_or_default();
        }
        pending.extend_from_slice(bytes);
        while pending.len() > MAX_RECORD_BYTES {
            let rest = pending.split_off(MAX_RECORD_BYTES);
            self.write_record(source, b'P', &pending);
            pending = rest;
        }
        *self.pending(source) = pending;
        if self.stdout.is_empty() && self.stderr.is_empty() {
            self.partial_since = None;
        } else if self.partial_since.is_none() {
            self.partial_since = Some(Instant::now());
        }
    }

    /// When [`CriLog::flush_partial`] is next due.
    pub fn deadline(&self) -> Option<Instant> {
        self.partial_since.map(|since| since + PARTIAL_DELAY)
    }

    /// Writes the line starts that wait, as partial records.
    pub fn flush_partial(&mut self) {
        for source in [Source::Stdout, Source::Stderr] {
            let pending = std::mem::take(self.pending(source));
            if !pending.is_empty() {
                self.write_record(source, b'P', &pending);
            }
        }
        self.partial_since = None;
    }

    pub fn sync(&self) -> io::Result<()> {
        self.log.sync()
    }

    pub fn lost_bytes(&self) -> u64 {
        self.log.lost_bytes()
    }

    fn pending(&mut self, source: Source) -> &mut Vec<u8> {
        match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        }
    }

    fn write_line(&mut self, source: Source, line: &[u8], last_tag: u8) {
        let mut rest = line;
        while rest.len() > MAX_RECORD_BYTES {
            let (piece, later) = rest.split_at(MAX_RECORD_BYTES);
            self.write_record(source, b'P', piece);
            rest = later;
        }
        self.write_record(source, last_tag, rest);
    }

    fn write_record(&mut self, source: Source, tag: u8, content: &[u8]) {
        let mut record = Vec::with_capacity(content.len() + 48);
        record.extend_from_slice(clock::now_rfc3339().as_bytes());
        record.push(b' ');
        record.extend_from_slice(source.name().as_bytes());
        record.extend_from_slice(&[b' ', tag, b' ']);
        record.extend_from_slice(content);
        record.push(b'\n');
        self.log.append_whole(&record);
    }
}

#[cfg(test)]
mod tests {
    use super::{CriLog, RotatingLog, Source};
    use crate::config::LogConfig;
    use std::path::{Path, PathBuf};

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("firebuild-logs-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("folder");
        path
    }

    fn open(path: &Path, max_bytes: u64) -> RotatingLog {
        RotatingLog::open(&LogConfig { path: path.to_owned(), max_bytes }).expect("opens")
    }

    #[test]
    fn rotation_keeps_the_limit_and_the_newest_bytes() {
        let folder = folder("rotate");
        let path = folder.join("console.log");
        let mut log = open(&path, 5000);
        let bytes: Vec<u8> = (0..23_456_u32).map(|n| b'a' + (n % 26) as u8).collect();
        for piece in bytes.chunks(777) {
            log.append(piece);
        }
        let new = std::fs::read(&path).expect("new");
        let old = std::fs::read(folder.join("console.log.1")).expect("old");
        assert_eq!(old.len(), 5000);
        let kept = [old, new].concat();
        assert!(kept.len() <= 10_000);
        assert!(bytes.ends_with(&kept));
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn cri_records_split_long_lines_and_keep_the_streams_apart() {
        let folder = folder("cri");
        let path = folder.join("output.log");
        let mut log = CriLog::new(open(&path, 1 << 20));
        let long = vec![b'x'; 40_000];
        log.append(Source::Stdout, b"one\ntw");
        log.append(Source::Stderr, b"oops\n");
        log.append(Source::Stdout, b"o\n");
        log.append(Source::Stdout, &long);
        log.append(Source::Stdout, b"\nend");
        assert!(log.deadline().is_some());
        log.flush_partial();
        assert!(log.deadline().is_none());
        let text = std::fs::read_to_string(&path).expect("text");
        let records: Vec<(String, String, usize)> = text
            .lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ');
                let time = parts.next().expect("time");
                assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
                let stream = parts.next().expect("stream").to_owned();
                let tag = parts.next().expect("tag").to_owned();
                (stream, tag, parts.next().expect("content").len())
            })
            .collect();
        let expected = [
            ("stdout", "F", 3),
            ("stderr", "F", 4),
            ("stdout", "F", 3),
            ("stdout", "P", 16384),
            ("stdout", "P", 16384),
            ("stdout", "F", 7232),
            ("stdout", "P", 3),
        ];
        let expected: Vec<(String, String, usize)> =
            expected.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), *c)).collect();
        assert_eq!(records, expected);
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn a_record_is_never_split_over_two_files() {
        let folder = folder("whole");
        let path = folder.join("output.log");
        let mut log = CriLog::new(open(&path, 4096));
        for number in 0..500 {
            log.append(Source::Stdout, format!("line {number}\n").as_bytes());
        }
        let old = std::fs::read_to_string(folder.join("output.log.1")).expect("old");
        let new = std::fs::read_to_string(&path).expect("new");
        for line in old.lines().chain(new.lines()) {
            assert_eq!(line.split(' ').count(), 5, "{line}");
        }
        assert!(new.ends_with("line 499\n"));
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
