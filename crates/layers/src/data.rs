//! DATA frames as a reader and a writer of bytes.

use std::io::{self, Read, Write};

use firebuild_protocol::{FrameStream, FrameType, ProtocolError, TaskError};

/// Bytes per DATA frame: large enough to be cheap, small enough to share a channel.
const CHUNK_BYTES: usize = 128 * 1024;

/// The bytes of the DATA frames that follow, up to the empty one.
pub struct DataReader<'a> {
    stream: &'a mut dyn FrameStream,
    chunk: Vec<u8>,
    taken: usize,
    ended: bool,
    error: Option<ProtocolError>,
}

impl<'a> DataReader<'a> {
    pub fn new(stream: &'a mut dyn FrameStream) -> Self {
        Self { stream, chunk: Vec::new(), taken: 0, ended: false, error: None }
    }

    /// Reads and drops what is left, so that the peer can be answered.
    pub fn finish(mut self) -> Result<(), TaskError> {
        while !self.ended {
            match self.next_chunk() {
                Ok(()) => {}
                Err(error) => return Err(self.task_error("reading the data", &error)),
            }
        }
        Ok(())
    }

    /// What an error of [`Read::read`] was: the stream's own, or one that arose above it.
    pub fn task_error(&mut self, doing: &str, error: &io::Error) -> TaskError {
        match self.error.take() {
            Some(error) => TaskError::Stream(error),
            None => TaskError::io(doing, error),
        }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let frame = match self.stream.read_frame() {
            Ok(frame) if frame.frame_type == FrameType::Data => frame,
            Ok(frame) => {
                self.error = Some(ProtocolError::Unexpected(format!("{} instead of DATA", frame.frame_type.name())));
                return Err(io::ErrorKind::InvalidData.into());
            }
            Err(error) => {
                self.error = Some(error);
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        };
        self.ended = frame.payload.is_empty();
        self.chunk = frame.payload;
        self.taken = 0;
        Ok(())
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken >= self.chunk.len() {
            if self.ended {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let mut rest = self.chunk.get(self.taken..).unwrap_or_default();
        let count = rest.read(buffer)?;
        self.taken += count;
        Ok(count)
    }
}

/// Collects bytes into DATA frames; [`DataWriter::finish`] sends the empty one.
pub struct DataWriter<'a> {
    stream: &'a mut dyn FrameStream,
    chunk: Vec<u8>,
    error: Option<ProtocolError>,
}

impl<'a> DataWriter<'a> {
    pub fn new(stream: &'a mut dyn FrameStream) -> Self {
        Self { stream, chunk: Vec::with_capacity(CHUNK_BYTES), error: None }
    }

    pub fn finish(mut self) -> Result<(), TaskError> {
        if let Err(error) = self.flush() {
            return Err(self.task_error("sending the data", &error));
        }
        Ok(self.stream.write_frame(FrameType::Data, b"")?)
    }

    /// What an error of [`Write::write`] was: the stream's own, or one that arose above it.
    pub fn task_error(&mut self, doing: &str, error: &io::Error) -> TaskError {
        match self.error.take() {
            Some(error) => TaskError::Stream(error),
            None => TaskError::io(doing, error),
        }
    }
}

impl Write for DataWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES.saturating_sub(self.chunk.len());
        let (now, _) = buffer.split_at(buffer.len().min(room));
        self.chunk.extend_from_slice(now);
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let sent = self.stream.write_frame(FrameType::Data, &self.chunk);
        self.chunk.clear();
        sent.map_err(|error| {
            self.error = Some(error);
            io::ErrorKind::BrokenPipe.into()
        })
    }
}
