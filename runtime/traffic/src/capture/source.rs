//! A bounded window over the bytes of a capture, decompressed where they are gzip.

use std::io::{self, Cursor, Read};
use std::ops::Range;

use flate2::read::MultiGzDecoder;

use crate::error::CaptureError;
use crate::limits::{READ_BUFFER_BYTES, READ_BUFFER_FIRST_BYTES};
use crate::memory::{MemoryError, try_filled, try_hold};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Counts what is taken from the source, for progress displays.
struct Counting<R> {
    inner: R,
    taken_bytes: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.taken_bytes += count as u64;
        Ok(count)
    }
}

/// The source with the bytes put back that were read to find its format.
type Whole<R> = io::Chain<Cursor<Vec<u8>>, Counting<R>>;

enum Source<R: Read> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
}

impl<R: Read> Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(source) => source.read(buffer),
        }
    }
}

/// The bytes from the reader's place on, as far as they have been read.
pub(super) struct Window<R: Read> {
    source: Source<R>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Place of `start` in the capture.
    offset: u64,
    ended: bool,
    failure: Option<io::Error>,
    refused: Option<MemoryError>,
}

/// What errors call the window's buffer.
const BUFFER: &str = "read buffer";

impl<R: Read> Window<R> {
    pub(super) fn open(reader: R) -> Result<Self, CaptureError> {
        let buffer = try_filled(BUFFER, READ_BUFFER_FIRST_BYTES, 0)
            .map_err(|source| CaptureError::Memory { offset: 0, source })?;
        let mut counting = Counting {
            inner: reader,
            taken_bytes: 0,
        };
        let mut prefix = vec![0; GZIP_MAGIC.len()];
        let mut filled = 0;
        while let Some(room) = prefix.get_mut(filled..).filter(|room| !room.is_empty()) {
            match counting.read(room) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(CaptureError::Io {
                        offset: filled as u64,
                        source,
                    });
                }
            }
        }
        prefix.truncate(filled);
        let gzip = prefix == GZIP_MAGIC;
        let whole = Cursor::new(prefix).chain(counting);
        let source = if gzip {
            Source::Gzip(Box::new(MultiGzDecoder::new(whole)))
        } else {
            Source::Plain(whole)
        };
        Ok(Self {
            source,
            buffer,
            start: 0,
            end: 0,
            offset: 0,
            ended: false,
            failure: None,
            refused: None,
        })
    }

    pub(super) fn is_gzip(&self) -> bool {
        matches!(self.source, Source::Gzip(_))
    }

    pub(super) fn source_bytes(&self) -> u64 {
        match &self.source {
            Source::Plain(source) => source.get_ref().1.taken_bytes,
            Source::Gzip(source) => source.get_ref().get_ref().1.taken_bytes,
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads until `need_bytes` are there or the source has ended; returns how many are there.
    /// The buffer grows to what is needed, up to its limit; more is never asked for because every length is checked
    /// first.
    pub(super) fn fill(&mut self, need_bytes: usize) -> usize {
        let need_bytes = need_bytes.min(READ_BUFFER_BYTES);
        if need_bytes > self.buffer.len() {
            let grown = need_bytes.next_power_of_two().min(READ_BUFFER_BYTES);
            match try_hold(BUFFER, &mut self.buffer, grown) {
                Ok(()) => self.buffer.resize(grown, 0),
                Err(refused) => {
                    self.refused = Some(refused);
                    self.ended = true;
                }
            }
        }
        if self.end - self.start < need_bytes && self.start + need_bytes > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < need_bytes && !self.ended {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            let room_bytes = room.len();
            match self.source.read(room) {
                Ok(0) => self.ended = true,
                Ok(count) => self.end += count.min(room_bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure = Some(error);
                    self.ended = true;
                }
            }
        }
        self.end - self.start
    }

    /// The bytes that are there.
    pub(super) fn bytes(&self) -> &[u8] {
        self.slice(self.start..self.end)
    }

    /// A range of the buffer, as [`Window::position`] counts.
    pub(super) fn slice(&self, range: Range<usize>) -> &[u8] {
        self.buffer.get(range).unwrap_or_default()
    }

    /// Place of the reader in the buffer; good until the next [`Window::fill`].
    pub(super) fn position(&self) -> usize {
        self.start
    }

    /// Moves on; the bytes passed stay where they are until the next [`Window::fill`].
    pub(super) fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.offset += count as u64;
    }

    /// Moves on over more bytes than the buffer may hold; returns how many there were.
    pub(super) fn skip(&mut self, count: u64) -> u64 {
        let mut left = count;
        while left > 0 {
            let step = left.min(READ_BUFFER_FIRST_BYTES as u64) as usize;
            let there = self.fill(step).min(step);
            self.consume(there);
            left -= there as u64;
            if there < step {
                break;
            }
        }
        count - left
    }

    /// The error that ended the source, if one did.
    pub(super) fn failure(&mut self) -> Option<CaptureError> {
        let offset = self.offset + (self.end - self.start) as u64;
        if let Some(source) = self.refused.take() {
            return Some(CaptureError::Memory { offset, source });
        }
        let source = self.failure.take()?;
        Some(match self.source {
            Source::Plain(_) => CaptureError::Io { offset, source },
            Source::Gzip(_) => CaptureError::Gzip { offset, source },
        })
    }

    /// The error for something that starts here and is not wholly there.
    pub(super) fn cut(&mut self, what: &'static str, expected_bytes: u64) -> CaptureError {
        let found_bytes = (self.end - self.start) as u64;
        let offset = self.offset;
        self.failure().unwrap_or(CaptureError::Truncated {
            offset,
            what,
            expected_bytes,
            found_bytes,
        })
    }
}
