//! From the bytes of a ring buffer record to a [`Record`]. The layouts are `coati_common::event`'s, in native byte order.

use coati_common::event::{Begin, Data, End, Exit, Header, Kind, Served, Tail, Tls, Totals};
use coati_common::limits::{PATH_BYTES, UNIX_PATH_BYTES};

/// A record of the kernel programs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// An exchange has begun, or HTTP/2 on a connection; the first bytes of its request. On the heap: most records are much smaller.
    Begin(Box<Begin>, Vec<u8>),
    /// Bytes of an exchange, the first of them included.
    Data(Data, Vec<u8>),
    /// The last bytes of what the next record of the exchange tells of, or of what no record told of.
    Tail(Tail, Vec<u8>),
    /// A connection is over.
    End(End),
    /// A process runs another program, whose path this is, possibly cut.
    Exec(Header, u32, Vec<u8>),
    /// A process has ended.
    Exit(Exit),
    /// A process speaks TLS, and no probe is in its library.
    Tls(Tls),
    /// Name of a connection's Unix socket: a path, or an abstract name, which begins with a zero.
    Unix(Header, u64, Vec<u8>),
}

impl Record {
    /// What every record begins with.
    pub fn header(&self) -> &Header {
        match self {
            Self::Begin(begin, _) => &begin.header,
            Self::Data(data, _) => &data.header,
            Self::Tail(tail, _) => &tail.header,
            Self::End(end) => &end.header,
            Self::Exec(header, ..) | Self::Unix(header, ..) => header,
            Self::Exit(exit) => &exit.header,
            Self::Tls(tls) => &tls.header,
        }
    }

    /// Reads the bytes of one ring buffer record. Bytes behind it are ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields { rest: bytes, len: bytes.len() };
        let header = Header { kind: fields.u32()?, cpu: fields.u32()?, cpu_seq: fields.u64()?, time_ns: fields.u64()? };
        match Kind::from_u32(header.kind).ok_or(RecordError::Kind { found: header.kind })? {
            Kind::Begin | Kind::Http2 => fields.begin(header),
            Kind::Data => fields.data(header),
            Kind::Tail => fields.tail(header),
            Kind::End => fields.end(header).map(Self::End),
            Kind::Exec => fields.exec(header),
            Kind::Exit => Ok(Self::Exit(Exit { header, tgid: fields.u32()?, reserved: fields.u32()? })),
            Kind::Unix => fields.unix(header),
            Kind::Tls => Ok(Self::Tls(Tls { header, tgid: fields.u32()?, reserved: fields.u32()? })),
        }
    }
}

/// Bytes that are no record: kernel programs and agent do not fit together.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end too early.
    #[error("record is cut: {wanted} bytes at byte {at} do not fit into {len}")]
    Cut {
        /// Where the field begins.
        at: usize,
        /// Bytes of the field.
        wanted: usize,
        /// Bytes that there are.
        len: usize,
    },
    /// No such kind of record.
    #[error("record is of kind {found}, which is not known")]
    Kind {
        /// The kind.
        found: u32,
    },
    /// A path longer than the field for it.
    #[error("record has a path of {found} bytes, more than {most}")]
    Path {
        /// The length.
        found: u32,
        /// What fits.
        most: usize,
    },
}

/// Reads fields one after the other.
struct Fields<'a> {
    /// What was not read yet.
    rest: &'a [u8],
    /// Bytes of the whole record.
    len: usize,
}

impl Fields<'_> {
    fn begin(&mut self, header: Header) -> Result<Record, RecordError> {
        let begin = Begin {
            header,
            connection: self.u64()?,
            socket: self.u64()?,
            exchange: self.u32()?,
            tgid: self.u32()?,
            tid: self.u32()?,
            netns: self.u32()?,
            client_position: self.u32()?,
            server_position: self.u32()?,
            local_address: self.array()?,
            remote_address: self.array()?,
            local_port: self.u16()?,
            remote_port: self.u16()?,
            role: self.u8()?,
            flags: self.u8()?,
            payload_len: self.u16()?,
            len: self.u64()?,
            last: self.array()?,
            served: self.served()?,
            previous: self.totals()?,
        };
        let payload = self.slice(begin.payload_len.into())?.to_vec();
        Ok(Record::Begin(Box::new(begin), payload))
    }

    fn data(&mut self, header: Header) -> Result<Record, RecordError> {
        let data = Data {
            header,
            connection: self.u64()?,
            exchange: self.u32()?,
            tgid: self.u32()?,
            tid: self.u32()?,
            payload_len: self.u16()?,
            direction: self.u8()?,
            flags: self.u8()?,
            len: self.u64()?,
            last: self.array()?,
            served: self.served()?,
            totals: self.totals()?,
        };
        let payload = self.slice(data.payload_len.into())?.to_vec();
        Ok(Record::Data(data, payload))
    }

    fn tail(&mut self, header: Header) -> Result<Record, RecordError> {
        let tail = Tail {
            header,
            connection: self.u64()?,
            exchange: self.u32()?,
            payload_len: self.u16()?,
            reserved: self.u16()?,
        };
        let payload = self.slice(tail.payload_len.into())?.to_vec();
        Ok(Record::Tail(tail, payload))
    }

    fn end(&mut self, header: Header) -> Result<End, RecordError> {
        Ok(End { header, connection: self.u64()?, exchange: self.u32()?, reason: self.u32()?, totals: self.totals()? })
    }

    fn exec(&mut self, header: Header) -> Result<Record, RecordError> {
        let (tgid, path_len) = (self.u32()?, self.u32()?);
        let path: [u8; PATH_BYTES] = self.array()?;
        let too_long = RecordError::Path { found: path_len, most: PATH_BYTES };
        let path = path.get(..path_len as usize).ok_or(too_long)?;
        Ok(Record::Exec(header, tgid, path.to_vec()))
    }

    fn served(&mut self) -> Result<Served, RecordError> {
        Ok(Served { connection: self.u64()?, exchange: self.u32()?, place: self.u32()? })
    }

    fn unix(&mut self, header: Header) -> Result<Record, RecordError> {
        let (connection, path_len, _reserved) = (self.u64()?, self.u32()?, self.u32()?);
        let path: [u8; UNIX_PATH_BYTES] = self.array()?;
        let too_long = RecordError::Path { found: path_len, most: UNIX_PATH_BYTES };
        let path = path.get(..path_len as usize).ok_or(too_long)?;
        Ok(Record::Unix(header, connection, path.to_vec()))
    }

    fn totals(&mut self) -> Result<Totals, RecordError> {
        Ok(Totals {
            request_bytes: self.u64()?,
            response_bytes: self.u64()?,
            request_last_ns: self.u64()?,
            response_first_ns: self.u64()?,
            response_last_ns: self.u64()?,
            longest_gap_ns: self.u64()?,
            response_chunks: self.u32()?,
            reserved: self.u32()?,
        })
    }

    fn slice(&mut self, wanted: usize) -> Result<&[u8], RecordError> {
        let (slice, rest) = self.rest.split_at_checked(wanted).ok_or_else(|| self.cut(wanted))?;
        self.rest = rest;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.cut(N))?;
        self.rest = rest;
        Ok(*array)
    }

    /// Apart from what is always done: a record has some thirty fields.
    #[cold]
    fn cut(&self, wanted: usize) -> RecordError {
        RecordError::Cut { at: self.len - self.rest.len(), wanted, len: self.len }
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests;
