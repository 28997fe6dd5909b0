//! A streaming reader of tar archives: ustar, PAX (POSIX pax, "pax Interchange Format") and GNU long names and numbers.
//!
//! Everything it yields is untrusted: names may be absolute, hold `..`, or repeat. Sparse files are refused.

use std::io::{self, Read};

use rustix::fs::Timespec;

use crate::tree::{is_overlay_xattr, Kind, Xattrs};

const BLOCK: usize = 512;
/// Long names and PAX records of one entry together.
const MAX_EXTENSION: u64 = 1 << 20;
/// PATH_MAX without its terminating zero.
const MAX_PATH: usize = 4095;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Why an archive cannot be read on.
#[derive(Debug)]
pub enum ArchiveError {
    /// The archive itself is wrong; the text names the entry.
    Bad(String),
    /// It asks for more than is allowed.
    Limit(String),
    /// The bytes did not come.
    Io(io::Error),
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What an entry is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    Plain(Kind),
    HardLink,
}

/// One entry's header, all extensions applied.
#[derive(Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: EntryKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Timespec,
    pub device: u64,
    /// Without overlayfs's own attributes: an archive must not speak to overlayfs.
    pub xattrs: Xattrs,
}

impl Entry {
    /// The name for messages, shortened, unprintable bytes escaped.
    pub fn shown(&self) -> String {
        show(&self.path)
    }
}

/// A name from an archive, fit for a message.
pub fn show(path: &[u8]) -> String {
    let short = path.get(..path.len().min(256)).unwrap_or_default();
    format!("{:?}", String::from_utf8_lossy(short))
}

/// Values that PAX records or GNU entries set for the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timespec>,
    xattrs: Xattrs,
}

pub struct TarReader<R> {
    input: R,
    /// Content of the present entry that has not been read yet, and its padding.
    left: u64,
    padding: u64,
    ended: bool,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, ended: false }
    }

    pub fn into_inner(self) -> R {
        self.input
    }

    pub fn get_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The next entry; what was left of the one before is skipped. None at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extensions = Extensions::default();
        let mut extended = 0_u64;
        loop {
            self.skip_rest()?;
            let Some(block) = self.read_header()? else {
                return Ok(None);
            };
            let header = Header { block };
            let size = header.number(124, 12)?;
            match header.byte(156) {
                kind @ (b'x' | b'g' | b'L' | b'K') => {
                    extended = extended.saturating_add(size);
                    if extended > MAX_EXTENSION {
                        return Err(ArchiveError::Limit(format!("header extensions of {extended} bytes")));
                    }
                    self.start_content(size);
                    let content = self.read_all()?;
                    match kind {
                        b'x' => extensions.read_pax(&content)?,
                        b'L' => extensions.path = Some(until_zero(&content)),
                        b'K' => extensions.link = Some(until_zero(&content)),
                        // Global records: comments of git archives and the like. Nothing here needs them.
                        _ => {}
                    }
                }
                _ => {
                    let entry = header.entry(extensions, size)?;
                    self.start_content(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0_u8; BLOCK];
        let count = read_up_to(&mut self.input, &mut block)?;
        // A stream that ends between entries without its two zero blocks is taken as ended, as Go's reader does.
        if count == 0 || (count == BLOCK && block.iter().all(|byte| *byte == 0)) {
            self.ended = true;
            return Ok(None);
        }
        if count < BLOCK {
            return Err(ArchiveError::Bad("the archive ends within a header".to_owned()));
        }
        let header = Header { block };
        let stored = header.number(148, 8)?;
        let field = 148..156;
        let values = block.iter().enumerate();
        let sum: u64 = values.map(|(at, byte)| if field.contains(&at) { 32 } else { u64::from(*byte) }).sum();
        if sum != stored {
            return Err(ArchiveError::Bad(format!("wrong header checksum at {}", show(&header.name()))));
        }
        Ok(Some(block))
    }

    fn start_content(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % 512;
    }

    fn read_all(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut content = Vec::new();
        let expected = self.left;
        Read::take(&mut *self, expected).read_to_end(&mut content)?;
        if u64::try_from(content.len()).ok() != Some(expected) {
            return Err(ArchiveError::Bad("the archive ends within an entry".to_owned()));
        }
        Ok(content)
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut Read::take(&mut self.input, rest), &mut io::sink())?;
        self.left = 0;
        self.padding = 0;
        if skipped < rest {
            return Err(ArchiveError::Bad("the archive ends within an entry".to_owned()));
        }
        Ok(())
    }
}

/// The content of the present entry. An end before its size is an error.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.input.read(buffer.get_mut(..limit).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}

struct Header {
    block: [u8; BLOCK],
}

impl Header {
    fn byte(&self, at: usize) -> u8 {
        self.block.get(at).copied().unwrap_or(0)
    }

    fn field(&self, at: usize, length: usize) -> &[u8] {
        self.block.get(at..at + length).unwrap_or_default()
    }

    /// The name field with the ustar prefix before it.
    fn name(&self) -> Vec<u8> {
        let name = until_zero(self.field(0, 100));
        // GNU's magic is "ustar  \0": what stands at 345 is no prefix there.
        let prefix = if self.field(257, 6) == b"ustar\0" { until_zero(self.field(345, 155)) } else { Vec::new() };
        if prefix.is_empty() {
            return name;
        }
        [prefix, name].join(&b'/')
    }

    /// An octal number, or GNU's base 256 when the first bit is set. Negative ones are refused.
    fn number(&self, at: usize, length: usize) -> Result<u64, ArchiveError> {
        let bad = || ArchiveError::Bad(format!("a bad number in the header of {}", show(&self.name())));
        let field = self.field(at, length);
        match field.split_first() {
            Some((first, rest)) if first & 0x80 != 0 => {
                if *first != 0x80 {
                    return Err(bad());
                }
                rest.iter()
                    .try_fold(0_u64, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)))
                    .ok_or_else(bad)
            }
            _ => parse_octal(field).ok_or_else(bad),
        }
    }

    fn mtime(&self) -> Result<Timespec, ArchiveError> {
        let field = self.field(136, 12);
        // A time before 1970 in base 256 is a two's complement number.
        if field.first() == Some(&0xff) {
            let tail = field.get(4..).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            let seconds = tail.map(i64::from_be_bytes).unwrap_or(0);
            return Ok(Timespec { tv_sec: seconds, tv_nsec: 0 });
        }
        let seconds = self.number(136, 12)?;
        Ok(Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 })
    }

    fn entry(&self, extensions: Extensions, size: u64) -> Result<Entry, ArchiveError> {
        let path = extensions.path.unwrap_or_else(|| self.name());
        let link = extensions.link.unwrap_or_else(|| until_zero(self.field(157, 100)));
        let bad = |what: &str| ArchiveError::Bad(format!("{}: {what}", show(&path)));
        for text in [&path, &link] {
            if text.contains(&0) {
                return Err(bad("a name with a zero byte"));
            }
            if text.len() > MAX_PATH {
                return Err(ArchiveError::Limit(format!("a name of {} bytes", text.len())));
            }
        }
        let kind = match self.byte(156) {
            b'0' | 0 | b'7' if path.ends_with(b"/") => EntryKind::Plain(Kind::Directory),
            b'0' | 0 | b'7' => EntryKind::Plain(Kind::File),
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Plain(Kind::Symlink),
            b'3' => EntryKind::Plain(Kind::CharDevice),
            b'4' => EntryKind::Plain(Kind::BlockDevice),
            b'5' => EntryKind::Plain(Kind::Directory),
            b'6' => EntryKind::Plain(Kind::Fifo),
            b'S' => return Err(bad("sparse files are not supported")),
            other => return Err(bad(&format!("unknown entry type {:?}", char::from(other)))),
        };
        let id = |value: Option<u64>, at: usize| -> Result<u32, ArchiveError> {
            let value = value.map_or_else(|| self.number(at, 8), Ok)?;
            // The highest id means "leave as it is" to the kernel.
            u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or_else(|| bad("an owner out of range"))
        };
        let is_device = matches!(kind, EntryKind::Plain(Kind::CharDevice | Kind::BlockDevice));
        let device = if is_device {
            let part = |at| self.number(at, 8).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
            rustix::fs::makedev(part(329)?, part(337)?)
        } else {
            0
        };
        // Only files have content; some writers give a size to others (hard links) without any following.
        let has_content = kind == EntryKind::Plain(Kind::File);
        let mode = u32::try_from(self.number(100, 8)? & 0o7777).unwrap_or(0);
        let size = if has_content { extensions.size.unwrap_or(size) } else { 0 };
        if size > i64::MAX as u64 {
            return Err(bad("a size out of range"));
        }
        Ok(Entry {
            uid: id(extensions.uid, 108)?,
            gid: id(extensions.gid, 116)?,
            mtime: extensions.mtime.map_or_else(|| self.mtime(), Ok)?,
            xattrs: extensions.xattrs,
            path,
            link,
            kind,
            mode,
            size,
            device,
        })
    }
}

impl Extensions {
    /// `<length> <key>=<value>\n` records; a later one replaces an earlier one.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), ArchiveError> {
        let bad = || ArchiveError::Bad("a bad PAX record".to_owned());
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let (digits, _) = records.split_at(space);
            let length = parse_decimal(digits).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
            if length > records.len() || length <= space + 1 {
                return Err(bad());
            }
            let (record, rest) = records.split_at(length);
            records = rest;
            let body = record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = body.split_at(equals);
            self.set(key, value.get(1..).unwrap_or_default())?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        let bad = || ArchiveError::Bad(format!("a bad PAX value of {}", show(key)));
        let number = || parse_decimal(value).ok_or_else(bad);
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(parse_time(value).ok_or_else(bad)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(ArchiveError::Bad("sparse files are not supported".to_owned()));
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    let usable = !name.is_empty() && name.len() <= 255 && !name.contains(&0);
                    if !usable || value.len() > 65_536 {
                        return Err(ArchiveError::Limit(format!("the extended attribute {}", show(name))));
                    }
                    self.xattrs.retain(|(known, _)| known != name);
                    if !is_overlay_xattr(name) {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn until_zero(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn parse_octal(field: &[u8]) -> Option<u64> {
    let text = trim(field.split(|byte| *byte == 0).next().unwrap_or_default());
    let mut value = 0_u64;
    for byte in text {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`.
fn parse_time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let seconds = i64::try_from(parse_decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => Timespec { tv_sec: seconds, tv_nsec: nanos },
        (true, 0) => Timespec { tv_sec: seconds.checked_neg()?, tv_nsec: 0 },
        (true, _) => Timespec { tv_sec: seconds.checked_neg()?.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos },
    })
}

/// Reads until the buffer is full or the input ends.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// `<[u8]>::trim_ascii` of newer compilers.
fn trim(text: &[u8]) -> &[u8] {
    let Some(start) = text.iter().position(|byte| !byte.is_ascii_whitespace()) else {
        return &[];
    };
    let end = text.iter().rposition(|byte| !byte.is_ascii_whitespace()).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}
