//! The tar format (POSIX ustar and PAX, GNU long names), reading and writing, without a file system.

use std::io::{self, Read};

pub const BLOCK: usize = 512;
/// Longest PAX header or GNU long name.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// The largest number that an octal field of 8 bytes holds.
const MOST_OCTAL7: u64 = 0o7_777_777;
/// The largest number that an octal field of 12 bytes holds.
const MOST_OCTAL11: u64 = 0o77_777_777_777;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

impl Kind {
    fn from_flag(flag: u8) -> Option<Self> {
        Some(match flag {
            b'0' | 0 | b'7' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            _ => return None,
        })
    }

    fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::CharDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// One entry's header. Names are bytes as they stand in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of data that follow; 0 for everything but files.
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// Why an archive cannot be read.
#[derive(Debug)]
pub enum TarError {
    /// The archive is malformed; which entry (as far as known) and how.
    Bad(String),
    Io(io::Error),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Bad("the archive is cut off".to_owned()),
            _ => Self::Io(error),
        }
    }
}

fn bad<T>(name: &[u8], why: &str) -> Result<T, TarError> {
    Err(TarError::Bad(format!("entry {:?}: {why}", String::from_utf8_lossy(name))))
}

/// What extension headers say about the entry that follows them.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
}

/// Reads entries one after the other.
pub struct Reader<R> {
    source: R,
    /// Data of the current entry not read yet, and the padding after it.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0 }
    }

    /// The next entry; None at the end of the archive. What is left of the current one's data is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.read_header()? else { return Ok(None) };
            let flag = byte(&header, 156);
            let size = number(&header, 124, 12)?;
            match flag {
                b'x' => parse_pax(&self.read_extension(size)?, &mut extension)?,
                b'g' => {
                    self.read_extension(size)?;
                }
                b'L' => extension.name = Some(until_zero(&self.read_extension(size)?)),
                b'K' => extension.link = Some(until_zero(&self.read_extension(size)?)),
                _ => return self.finish_entry(&header, flag, size, extension).map(Some),
            }
        }
    }

    /// Read data of the current entry; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(room) = buffer.get_mut(..most).filter(|room| !room.is_empty()) else { return Ok(0) };
        let count = self.source.read(room)?;
        if count == 0 {
            return Err(TarError::Bad("the archive is cut off".to_owned()));
        }
        self.left -= count as u64;
        Ok(count)
    }

    fn finish_entry(&mut self, header: &[u8], flag: u8, size: u64, ext: Extension) -> Result<Entry, TarError> {
        let name = ext.name.unwrap_or_else(|| header_name(header));
        let Some(kind) = Kind::from_flag(flag) else {
            return bad(&name, &format!("type {:?} is not supported", char::from(flag)));
        };
        let narrow = |value: u64| match u32::try_from(value) {
            Ok(value) if value != u32::MAX => Ok(value),
            _ => bad(&name, "a number is out of range"),
        };
        let size = if kind == Kind::File { ext.size.unwrap_or(size) } else { 0 };
        let mtime = match ext.mtime {
            Some(mtime) => mtime,
            None => i64::try_from(number(header, 136, 12)?).unwrap_or(i64::MAX),
        };
        let entry = Entry {
            kind,
            mode: narrow(number(header, 100, 8)? & 0o7777)?,
            uid: narrow(ext.uid.map_or_else(|| number(header, 108, 8), Ok)?)?,
            gid: narrow(ext.gid.map_or_else(|| number(header, 116, 8), Ok)?)?,
            size,
            mtime,
            link: ext.link.unwrap_or_else(|| until_zero(field(header, 157, 100))),
            device: (narrow(number(header, 329, 8)?)?, narrow(number(header, 337, 8)?)?),
            name,
        };
        self.left = entry.size;
        self.padding = padding_of(entry.size);
        Ok(entry)
    }

    /// A checked header block; None for the zero block that ends an archive, or its end without one.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0_u8; BLOCK];
        let mut filled = 0;
        while let Some(room) = block.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.source.read(room)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Bad("the archive is cut off".to_owned())),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stored = number(&block, 148, 8)?;
        if stored != checksum(&block) {
            return bad(&header_name(&block), "the header's checksum is wrong");
        }
        Ok(Some(block))
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > LONGEST_EXTENSION {
            return Err(TarError::Bad("an extended header is too long".to_owned()));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or_default()];
        self.source.read_exact(&mut text)?;
        self.skip(padding_of(size))?;
        Ok(text)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), TarError> {
        let mut buffer = [0_u8; 4096];
        while count > 0 {
            let most = usize::try_from(count).unwrap_or(usize::MAX).min(buffer.len());
            let room = buffer.get_mut(..most).unwrap_or_default();
            self.source.read_exact(room)?;
            count -= most as u64;
        }
        Ok(())
    }
}

fn padding_of(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn field(header: &[u8], at: usize, length: usize) -> &[u8] {
    header.get(at..at + length).unwrap_or_default()
}

fn byte(header: &[u8], at: usize) -> u8 {
    header.get(at).copied().unwrap_or_default()
}

fn until_zero(text: &[u8]) -> Vec<u8> {
    text.iter().copied().take_while(|byte| *byte != 0).collect()
}

fn header_name(header: &[u8]) -> Vec<u8> {
    let name = until_zero(field(header, 0, 100));
    let prefix = until_zero(field(header, 345, 155));
    if field(header, 257, 6) == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/".to_vec(), name].concat()
    } else {
        name
    }
}

/// A numeric field: octal text, or base-256 when its first bit is set.
fn number(header: &[u8], at: usize, length: usize) -> Result<u64, TarError> {
    let text = field(header, at, length);
    let out_of_range = || TarError::Bad(format!("entry {:?}: a number is out of range", show(&header_name(header))));
    if byte(text, 0) & 0x80 != 0 {
        let mut value = u64::from(byte(text, 0) & 0x7f);
        for digit in text.iter().skip(1) {
            value = value
                .checked_mul(256)
                .and_then(|value| value.checked_add(u64::from(*digit)))
                .ok_or_else(out_of_range)?;
        }
        return Ok(value);
    }
    let digits: Vec<u8> = text.iter().copied().filter(|byte| !matches!(byte, b' ' | 0)).collect();
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + u64::from(digit - b'0')).ok_or_else(out_of_range),
        _ => Err(TarError::Bad(format!("entry {:?}: a number is malformed", show(&header_name(header))))),
    })
}

fn show(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// The sum of a header's bytes with the checksum field taken as spaces.
fn checksum(header: &[u8; BLOCK]) -> u64 {
    header.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum()
}

/// PAX records: `length key=value\n`.
fn parse_pax(text: &[u8], extension: &mut Extension) -> Result<(), TarError> {
    let malformed = || TarError::Bad("a PAX header is malformed".to_owned());
    let mut rest = text;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = rest.get(..space).and_then(|text| std::str::from_utf8(text).ok());
        let length: usize = length.and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        let record = rest.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let (key, value) = record.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        let decimal =
            || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok()).ok_or_else(malformed);
        match key {
            b"path" => extension.name = Some(value.to_vec()),
            b"linkpath" => extension.link = Some(value.to_vec()),
            b"size" => extension.size = Some(decimal()?),
            b"uid" => extension.uid = Some(decimal()?),
            b"gid" => extension.gid = Some(decimal()?),
            b"mtime" => {
                let text = std::str::from_utf8(value).map_err(|_| malformed())?;
                let seconds = text.split('.').next().unwrap_or(text);
                extension.mtime = Some(seconds.parse().map_err(|_| malformed())?);
            }
            _ => {}
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(())
}

/// The header blocks of an entry, with a PAX header before it where ustar has no room.
pub fn encode_header(entry: &Entry) -> Vec<u8> {
    let mut pax = Vec::new();
    if entry.name.len() > 100 {
        pax_record(&mut pax, "path", &entry.name);
    }
    if entry.link.len() > 100 {
        pax_record(&mut pax, "linkpath", &entry.link);
    }
    if entry.size > MOST_OCTAL11 {
        pax_record(&mut pax, "size", entry.size.to_string().as_bytes());
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if u64::from(id) > MOST_OCTAL7 {
            pax_record(&mut pax, key, id.to_string().as_bytes());
        }
    }
    if !(0..=MOST_OCTAL11 as i64).contains(&entry.mtime) {
        pax_record(&mut pax, "mtime", entry.mtime.to_string().as_bytes());
    }
    let mut out = Vec::new();
    if !pax.is_empty() {
        out.extend_from_slice(&ustar_header(entry, b'x', b"pax-header", b"", pax.len() as u64));
        out.extend_from_slice(&pax);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.extend_from_slice(&ustar_header(entry, entry.kind.flag(), &entry.name, &entry.link, entry.size));
    out
}

/// The zeros after an entry's data.
pub fn padding(size: u64) -> Vec<u8> {
    vec![0; usize::try_from(padding_of(size)).unwrap_or_default()]
}

/// The end of an archive.
pub const TRAILER: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

fn pax_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn ustar_header(entry: &Entry, flag: u8, name: &[u8], link: &[u8], size: u64) -> [u8; BLOCK] {
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, length: usize, text: &[u8]| {
        for (place, byte) in header.iter_mut().skip(at).take(length).zip(text) {
            *place = *byte;
        }
    };
    let octal7 = |value: u64| format!("{:07o}\0", value.min(MOST_OCTAL7));
    let octal11 = |value: u64| format!("{:011o}\0", value.min(MOST_OCTAL11));
    put(0, 100, name);
    put(100, 8, octal7(u64::from(entry.mode)).as_bytes());
    put(108, 8, octal7(u64::from(entry.uid)).as_bytes());
    put(116, 8, octal7(u64::from(entry.gid)).as_bytes());
    put(124, 12, octal11(size).as_bytes());
    put(136, 12, octal11(u64::try_from(entry.mtime).unwrap_or_default()).as_bytes());
    put(156, 1, &[flag]);
    put(157, 100, link);
    put(257, 8, b"ustar\x0000");
    put(329, 8, octal7(u64::from(entry.device.0)).as_bytes());
    put(337, 8, octal7(u64::from(entry.device.1)).as_bytes());
    let sum = checksum(&header);
    for (place, byte) in header.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").as_bytes()) {
        *place = *byte;
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind, size: u64) -> Entry {
        let (uid, gid, device) = (1000, 1000, (0, 0));
        Entry { name: name.into(), kind, mode: 0o644, uid, gid, size, mtime: 1_700_000_000, link: Vec::new(), device }
    }

    fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (entry, data) in entries {
            out.extend(encode_header(entry));
            out.extend_from_slice(data);
            out.extend(padding(entry.size));
        }
        out.extend(TRAILER);
        out
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut reader = Reader::new(bytes);
        let mut out = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let (mut data, mut buffer) = (Vec::new(), [0; 100]);
            loop {
                match reader.read_data(&mut buffer)? {
                    0 => break,
                    count => data.extend_from_slice(&buffer[..count]),
                }
            }
            out.push((entry, data));
        }
        Ok(out)
    }

    #[test]
    fn there_and_back() {
        let long = "d/".repeat(80) + "file";
        let mut link = entry("link", Kind::Symlink, 0);
        link.link = format!("/{long}").into_bytes();
        let mut far = entry("far", Kind::File, 0);
        (far.uid, far.gid, far.mtime) = (4_000_000_000, 3_000_000, -5);
        let entries = [
            (entry("a", Kind::File, 5), b"hello".to_vec()),
            (entry("dir/", Kind::Directory, 0), Vec::new()),
            (entry(&long, Kind::File, 512), vec![7; 512]),
            (link, Vec::new()),
            (far, Vec::new()),
        ];
        let borrowed: Vec<(Entry, &[u8])> = entries.iter().map(|(e, d)| (e.clone(), d.as_slice())).collect();
        assert_eq!(read_all(&archive(&borrowed)).unwrap(), entries);
    }

    #[test]
    fn data_may_be_skipped() {
        let bytes = archive(&[(entry("a", Kind::File, 700), &[1; 700]), (entry("b", Kind::File, 1), b"x")]);
        let mut reader = Reader::new(&bytes[..]);
        assert_eq!(reader.next_entry().unwrap().unwrap().name, b"a");
        assert_eq!(reader.next_entry().unwrap().unwrap().name, b"b");
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn what_is_malformed_is_told() {
        let good = archive(&[(entry("a", Kind::File, 700), &[1; 700])]);
        for cut in [1, 511, 513, 1000] {
            assert!(matches!(read_all(&good[..cut]), Err(TarError::Bad(_))), "{cut}");
        }
        let mut wrong = good.clone();
        wrong[0] = b'b';
        assert!(matches!(read_all(&wrong), Err(TarError::Bad(why)) if why.contains("checksum")));
        let mut sparse = good;
        sparse[156] = b'S';
        let sum = checksum(sparse[..BLOCK].try_into().unwrap());
        sparse[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(matches!(read_all(&sparse), Err(TarError::Bad(why)) if why.contains("not supported")));
        for pax in ["5", "9 path", "999999999999999999999 a=b\n", "3 =\n", "0 a=b\n", "8 size=x\n"] {
            assert!(parse_pax(pax.as_bytes(), &mut Extension::default()).is_err(), "{pax:?}");
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_an_archive_never_a_panic() {
        let mut state = 1_u32;
        let mut bytes = archive(&[(entry(&"n".repeat(150), Kind::File, 5), b"hello")]);
        for _ in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 8) as usize % bytes.len();
            let old = std::mem::replace(&mut bytes[at], state as u8);
            let block: [u8; BLOCK] = bytes[..BLOCK].try_into().unwrap();
            let sum = checksum(&block);
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let _ = read_all(&bytes);
            bytes[at] = old;
        }
    }
}
