//! A writer of tar archives: ustar with PAX records where a value does not fit. The same input gives the same bytes.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::tree::{Kind, Xattrs};

const BLOCK: usize = 512;
const MAX_NAME: usize = 100;
const MAX_OCTAL_7: u64 = 0o7_777_777;
const MAX_OCTAL_11: u64 = 0o77_777_777_777;

/// An entry to write. `hard_link` names the entry whose file this is another name of.
pub struct Header<'a> {
    pub path: &'a [u8],
    pub kind: Kind,
    pub link: &'a [u8],
    pub hard_link: bool,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    pub device: u64,
    pub xattrs: &'a Xattrs,
}

pub struct TarWriter<W> {
    output: W,
    buffer: Vec<u8>,
}

impl<W: Write> TarWriter<W> {
    pub fn new(output: W) -> Self {
        Self { output, buffer: vec![0; 128 * 1024] }
    }

    pub fn get_mut(&mut self) -> &mut W {
        &mut self.output
    }

    pub fn into_inner(self) -> W {
        self.output
    }

    /// Writes an entry without content.
    pub fn append(&mut self, header: &Header<'_>) -> io::Result<()> {
        self.write_header(header, 0)
    }

    /// Writes a file of exactly `header.size` bytes; shorter content is filled with zeros, longer is cut:
    /// the header has been sent when a file changes its size. Holes are not read: a large one would push all else out of
    /// memory.
    pub fn append_file(&mut self, header: &Header<'_>, file: &mut File) -> io::Result<()> {
        self.write_header(header, header.size)?;
        let mut position = 0;
        while position < header.size {
            let (start, end) = next_data(file, position, header.size)?;
            self.fill(start - position)?;
            let copied = self.copy(file, end - start)?;
            position = start + copied;
            if position < end {
                break;
            }
        }
        self.fill(header.size - position)?;
        self.fill(header.size.wrapping_neg() % 512)
    }

    fn fill(&mut self, mut zeros: u64) -> io::Result<()> {
        let whole = self.buffer.len();
        let used = usize::try_from(zeros).unwrap_or(whole).min(whole);
        let (part, _) = self.buffer.split_at_mut(used);
        part.fill(0);
        while zeros > 0 {
            let count = usize::try_from(zeros).unwrap_or(used).min(used);
            self.output.write_all(part.get(..count).unwrap_or_default())?;
            zeros -= u64::try_from(count).unwrap_or(zeros);
        }
        Ok(())
    }

    fn copy(&mut self, content: &mut dyn Read, size: u64) -> io::Result<u64> {
        let mut copied = 0;
        while copied < size {
            let left = usize::try_from(size - copied).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = match content.read(self.buffer.get_mut(..left).unwrap_or_default()) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.output.write_all(self.buffer.get(..count).unwrap_or_default())?;
            copied += u64::try_from(count).unwrap_or(0);
        }
        Ok(copied)
    }

    /// The two zero blocks that end an archive.
    pub fn finish(&mut self) -> io::Result<()> {
        self.output.write_all(&[0; BLOCK * 2])
    }

    fn write_header(&mut self, header: &Header<'_>, size: u64) -> io::Result<()> {
        let records = pax_records(header, size);
        if !records.is_empty() {
            let length = u64::try_from(records.len()).unwrap_or(u64::MAX);
            self.output.write_all(&block(b"PaxHeaders.0/entry", b'x', 0o644, (0, 0), length, 0, b"", 0))?;
            self.output.write_all(&records)?;
            let padding = length.wrapping_neg() % 512;
            io::copy(&mut io::repeat(0).take(padding), &mut self.output)?;
        }
        let kind = match header.kind {
            _ if header.hard_link => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
            Kind::File | Kind::Socket => b'0',
        };
        let mtime = u64::try_from(header.mtime).unwrap_or(0);
        let owner = (u64::from(header.uid), u64::from(header.gid));
        let bytes = block(header.path, kind, header.mode, owner, size, mtime, header.link, header.device);
        self.output.write_all(&bytes)
    }
}

/// Where, from `position` to `size`, the next data begin and end; the file is read from there on.
fn next_data(file: &mut File, position: u64, size: u64) -> io::Result<(u64, u64)> {
    const SMALL: u64 = 64 * 1024;
    if size <= SMALL {
        // Not worth looking for holes.
        return Ok((position, size));
    }
    let start = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(position)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok((size, size)),
        // A file system without holes: all of it is data.
        Err(_) => position,
    };
    let end = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(start)).unwrap_or(size).clamp(start, size);
    file.seek(io::SeekFrom::Start(start))?;
    Ok((start, end))
}

fn pax_records(header: &Header<'_>, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    let plain = |text: &[u8]| text.len() <= MAX_NAME && text.is_ascii();
    // In the order of their keys, so that the bytes do not depend on anything else.
    if u64::from(header.gid) > MAX_OCTAL_7 {
        append_record(&mut records, b"gid", header.gid.to_string().as_bytes());
    }
    if !plain(header.link) {
        append_record(&mut records, b"linkpath", header.link);
    }
    if header.mtime < 0 || u64::try_from(header.mtime).is_ok_and(|mtime| mtime > MAX_OCTAL_11) {
        append_record(&mut records, b"mtime", header.mtime.to_string().as_bytes());
    }
    if !plain(header.path) {
        append_record(&mut records, b"path", header.path);
    }
    if size > MAX_OCTAL_11 {
        append_record(&mut records, b"size", size.to_string().as_bytes());
    }
    if u64::from(header.uid) > MAX_OCTAL_7 {
        append_record(&mut records, b"uid", header.uid.to_string().as_bytes());
    }
    for (name, value) in header.xattrs {
        append_record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// `<length> <key>=<value>\n`, the length counting itself.
fn append_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[allow(clippy::too_many_arguments)]
fn block(
    path: &[u8],
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    size: u64,
    mtime: u64,
    link: &[u8],
    device: u64,
) -> [u8; BLOCK] {
    let mut block = [0_u8; BLOCK];
    let number = |value: u64, digits: usize, limit: u64| {
        // What does not fit stands in a PAX record; the field is then 0.
        let value = if value > limit { 0 } else { value };
        format!("{value:0digits$o}\0").into_bytes()
    };
    let cut = |text: &[u8]| text.get(..text.len().min(MAX_NAME)).unwrap_or_default().to_vec();
    let fields: [(usize, Vec<u8>); 13] = [
        (0, cut(path)),
        (100, number(u64::from(mode), 7, MAX_OCTAL_7)),
        (108, number(owner.0, 7, MAX_OCTAL_7)),
        (116, number(owner.1, 7, MAX_OCTAL_7)),
        (124, number(size, 11, MAX_OCTAL_11)),
        (136, number(mtime, 11, MAX_OCTAL_11)),
        (148, b"        ".to_vec()),
        (156, vec![kind]),
        (157, cut(link)),
        (257, b"ustar\0".to_vec()),
        (263, b"00".to_vec()),
        (329, number(u64::from(rustix::fs::major(device)), 7, MAX_OCTAL_7)),
        (337, number(u64::from(rustix::fs::minor(device)), 7, MAX_OCTAL_7)),
    ];
    for (at, bytes) in fields {
        put(&mut block, at, &bytes);
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(place) = block.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{memfd_create, MemfdFlags};

    use super::*;

    fn written(size: u64, real_size: u64, data: &[u64]) -> (Vec<u8>, Vec<u8>) {
        let mut file = File::from(memfd_create("sparse", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(real_size).unwrap();
        let mut expected = vec![0; usize::try_from(size).unwrap()];
        for position in data {
            file.write_all_at(b"data", *position).unwrap();
            let at = usize::try_from(*position).unwrap();
            expected[at..at + 4].copy_from_slice(b"data");
        }
        let none = Vec::new();
        let header = Header {
            path: b"sparse",
            kind: Kind::File,
            link: b"",
            hard_link: false,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            mtime: 0,
            device: 0,
            xattrs: &none,
        };
        let mut writer = TarWriter::new(Vec::new());
        writer.append_file(&header, &mut file).unwrap();
        (writer.into_inner().split_off(BLOCK), expected)
    }

    #[test]
    fn holes_are_zeros() {
        const MIB: u64 = 1 << 20;
        for (size, real_size, data) in [
            (3 * MIB, 3 * MIB, &[MIB, 2 * MIB + 77][..]),
            (3 * MIB + 1, 3 * MIB + 1, &[0, 3 * MIB - 5]),
            (3 * MIB, 3 * MIB, &[]),
            // It became shorter, and longer, since its header was written.
            (3 * MIB, MIB, &[5]),
            (100_000, 3 * MIB, &[99_990]),
            (1000, 500, &[300]),
            (0, 0, &[]),
        ] {
            let (archive, expected) = written(size, real_size, data);
            assert_eq!(archive.len() % BLOCK, 0);
            let (content, padding) = archive.split_at(expected.len());
            assert!(content == expected, "{size} {real_size} {data:?}");
            assert!(padding.len() < BLOCK && padding.iter().all(|byte| *byte == 0));
        }
    }
}
