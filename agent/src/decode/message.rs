//! A request or a response while its bytes move.

use std::sync::Arc;

use coati_common::limits::HEAD_BYTES;

use super::{
    body::{Body, Moved, Tail},
    http1::{HEAD_LIMIT, Head, HeadError, RequestHead, ResponseHead},
    method::Method,
};

/// Keeps the start of a body: known bytes, as long as none before them is missing.
fn keep(kept: &mut Vec<u8>, moved: &Moved<'_>) {
    let room = HEAD_BYTES.saturating_sub(kept.len());
    kept.extend(moved.known().iter().take(room));
}

/// Puts a head together that comes in pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadBuffer(Vec<u8>);

impl HeadBuffer {
    /// Takes bytes of `moved` up to the head's end, and gives the head once it is there or no more of it can come.
    fn take<H: Head>(&mut self, moved: &mut Moved<'_>, keeps: bool) -> Result<Option<H>, HeadError> {
        while !moved.is_empty() {
            let fresh = moved.known();
            if fresh.is_empty() || self.0.len() >= HEAD_LIMIT {
                return self.cut(keeps).map(Some);
            }
            let before = self.0.len();
            let head = if before == 0 {
                H::parse(fresh)?
            } else {
                self.0.extend_from_slice(fresh);
                // Byte by byte is a way to send a head too: only a line's end can complete it.
                if fresh.contains(&b'\n') { H::parse(&self.0)? } else { None }
            };
            if let Some(mut head) = head {
                if keeps {
                    head.keep_headers(if before == 0 { fresh } else { &self.0 });
                }
                moved.skip_known(head.size().saturating_sub(before));
                self.0 = Vec::new();
                return Ok(Some(head));
            }
            if before == 0 {
                self.0.extend_from_slice(fresh);
            }
            moved.skip_known(fresh.len());
        }
        Ok(None)
    }

    /// The same of the head of an answer, which is not read if it is `last` again. That has no headers, so who wants them reads.
    fn take_answer(
        &mut self,
        moved: &mut Moved<'_>,
        keeps: bool,
        last: &mut LastAnswer,
    ) -> Result<Option<ResponseHead>, HeadError> {
        if keeps || !self.0.is_empty() {
            return self.take(moved, keeps);
        }
        let bytes = moved.known();
        if let Some(head) = last.again(bytes) {
            moved.skip_known(head.size());
            return Ok(Some(head));
        }
        let head = self.take(moved, keeps)?;
        if let Some(head) = &head {
            last.note(head, bytes);
        }
        Ok(head)
    }

    /// The head as far as it came.
    fn cut<H: Head>(&mut self, keeps: bool) -> Result<H, HeadError> {
        let bytes = std::mem::take(&mut self.0);
        let mut head = H::parse_cut(&bytes)?;
        if keeps {
            head.keep_headers(&bytes);
        }
        Ok(head)
    }
}

/// The heads of a connection's messages before.
#[derive(Debug, Default)]
pub(super) struct LastHeads {
    pub(super) request: Option<Arc<RequestHead>>,
    pub(super) answer: LastAnswer,
}

/// The head of the answer before on a connection. Many are the same to the last byte until the clock shows another second, and
/// those are not read again.
#[derive(Debug, Default)]
pub(super) struct LastAnswer {
    /// As it was sent; kept for its memory too.
    bytes: Vec<u8>,
    head: Option<ResponseHead>,
}

impl LastAnswer {
    /// The same head, if `bytes` begin with it.
    fn again(&self, bytes: &[u8]) -> Option<ResponseHead> {
        self.head.as_ref().filter(|_| bytes.starts_with(&self.bytes)).cloned()
    }

    /// Takes note of the head at the start of `bytes`, if all of it is there.
    fn note(&mut self, head: &ResponseHead, bytes: &[u8]) {
        let whole = bytes.get(..head.size()).filter(|_| !head.cut);
        self.head = whole.map(|_| head.clone());
        self.bytes.clear();
        self.bytes.extend_from_slice(whole.unwrap_or_default());
    }
}

/// Where a message stands.
#[derive(Clone, Debug)]
enum Stage {
    Head(HeadBuffer),
    Body(Body),
}

impl Default for Stage {
    fn default() -> Self {
        Self::Head(HeadBuffer::default())
    }
}

/// A request whose bytes move.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestStream {
    pub(super) head: Option<Arc<RequestHead>>,
    stage: Stage,
    tail: Tail,
    /// Bytes so far, head included.
    pub(super) bytes: u64,
    /// The start of the body, where it is wanted.
    pub(super) kept: Option<Vec<u8>>,
}

impl RequestStream {
    /// Takes the bytes of `moved` that belong to the request; what is left belongs to another one. `last` is the head of the
    /// request before on this connection: most that keep a connection send the same again, and that is not read twice.
    pub(super) fn take(&mut self, moved: &mut Moved<'_>, last: &mut Option<Arc<RequestHead>>) -> Result<(), HeadError> {
        let before = moved.len();
        if let Stage::Head(buffer) = &mut self.stage {
            let known = last.as_ref().filter(|last| buffer.0.is_empty() && last.begins(moved.known()));
            if let Some(head) = known.map(Arc::clone) {
                moved.skip_known(head.size());
                self.set_head(head);
            } else if let Some(head) = buffer.take::<RequestHead>(moved, false)? {
                let head = Arc::new(head);
                *last = Some(Arc::clone(&head));
                self.set_head(head);
            }
        }
        if let Stage::Body(body) = &mut self.stage {
            if let Some(kept) = &mut self.kept {
                keep(kept, moved);
            }
            body.take(moved, &mut self.tail);
        }
        self.bytes += before - moved.len();
        Ok(())
    }

    /// Nothing more of the head will come.
    pub(super) fn cut(&mut self) -> Result<(), HeadError> {
        if let Stage::Head(buffer) = &mut self.stage {
            let head = buffer.cut(false)?;
            self.set_head(Arc::new(head));
        }
        Ok(())
    }

    fn set_head(&mut self, head: Arc<RequestHead>) {
        self.stage = Stage::Body(Body::of_request(&head));
        self.kept = head.model.map(|_| Vec::new());
        self.head = Some(head);
    }

    /// The next byte belongs to this request's body.
    pub(super) fn is_surely_incomplete(&self) -> bool {
        matches!(&self.stage, Stage::Body(body) if body.is_surely_incomplete(self.tail))
    }

    /// The last byte has moved, so the next one belongs to another request.
    pub(super) fn is_complete(&self) -> bool {
        matches!(&self.stage, Stage::Body(body) if body.is_complete(self.tail))
    }
}

/// The responses to a request, of which the last one counts.
#[derive(Clone, Debug, Default)]
pub(super) struct ResponseStream {
    pub(super) head: Option<ResponseHead>,
    stage: Stage,
    tail: Tail,
    /// Bytes of the final response so far, head included.
    pub(super) bytes: u64,
    /// What came first is not HTTP/1.
    pub(super) is_malformed: bool,
    /// The head's headers are wanted.
    pub(super) keeps_headers: bool,
    /// The start of the body, where it is wanted.
    pub(super) kept: Option<Vec<u8>>,
}

impl ResponseStream {
    /// Takes the bytes of `moved` that belong to the response to a `method` request. True if an interim response ended
    /// in them: everything before is not part of the final response. `last` is of the connection.
    pub(super) fn take(&mut self, moved: &mut Moved<'_>, method: Method, last: &mut LastAnswer) -> bool {
        let mut interim = false;
        let mut before = moved.len();
        while let Stage::Head(buffer) = &mut self.stage {
            match buffer.take_answer(moved, self.keeps_headers, last) {
                Ok(None) => break,
                Ok(Some(head)) if head.is_interim() => {
                    interim = true;
                    self.bytes = 0;
                    if head.cut {
                        self.skip_interim(moved);
                    }
                    before = moved.len();
                }
                Ok(Some(head)) => self.set_head(head, method),
                Err(error) => {
                    // A head that is cut within its status line is malformed only for want of the rest.
                    self.is_malformed = matches!(error, HeadError::Malformed { .. }) && !moved.known().is_empty();
                    self.stage = Stage::Body(Body::Unknown);
                }
            }
        }
        if let Stage::Body(body) = &mut self.stage {
            if let Some(kept) = &mut self.kept {
                keep(kept, moved);
            }
            body.take(moved, &mut self.tail);
        }
        self.bytes += before - moved.len();
        interim
    }

    /// The end of an interim head is unknown. As a rule it is alone in its call, and then that ends with an empty line;
    /// else the start of the final response is behind it, and lost.
    fn skip_interim(&mut self, moved: &mut Moved<'_>) {
        if moved.ends_with_empty_line() == Some(false) {
            self.stage = Stage::Body(Body::Unknown);
        } else {
            *moved = Moved::unknown(0);
        }
    }

    /// Takes the response's first bytes, which come behind later ones that were counted already.
    pub(super) fn take_late_start(&mut self, mut moved: Moved<'_>, method: Method, last: &mut LastAnswer) {
        let (bytes, tail) = (self.bytes, self.tail);
        *self = Self { keeps_headers: self.keeps_headers, ..Self::default() };
        self.take(&mut moved, method, last);
        let mut later = Moved::unknown(bytes.saturating_sub(self.bytes));
        self.take(&mut later, method, last);
        self.tail = tail;
    }

    fn set_head(&mut self, head: ResponseHead, method: Method) {
        self.stage = Stage::Body(Body::of_response(&head, method, head.size() as u64));
        self.head = Some(head);
    }

    /// Bytes behind the head were seen.
    pub(super) fn has_body(&self) -> bool {
        self.head.as_ref().is_some_and(|head| self.bytes > head.size() as u64)
    }

    /// Bytes of the response were seen.
    pub(super) const fn has_begun(&self) -> bool {
        self.bytes > 0
    }

    /// The last byte has moved.
    pub(super) fn is_complete(&self) -> bool {
        matches!(&self.stage, Stage::Body(body) if body.is_complete(self.tail))
    }

    /// The last byte has probably moved: nothing but a long silence tells.
    pub(super) fn is_probably_complete(&self) -> bool {
        matches!(&self.stage, Stage::Body(Body::AtLeast(bytes)) if self.bytes >= *bytes)
    }

    /// Bytes came, and nothing will tell which one is the last: the head, or what of it would tell, is missing.
    pub(super) const fn is_end_unknown(&self) -> bool {
        self.has_begun() && matches!(&self.stage, Stage::Body(Body::Unknown))
    }

    /// Bytes came, but the start of the response is unknown.
    pub(super) const fn is_headless(&self) -> bool {
        self.head.is_none() && matches!(&self.stage, Stage::Body(_))
    }

    /// Nothing more of the head will come.
    pub(super) fn cut(&mut self, method: Method) {
        if let Stage::Head(buffer) = &mut self.stage {
            match buffer.cut::<ResponseHead>(self.keeps_headers) {
                Ok(head) if !head.is_interim() => self.set_head(head, method),
                _ => self.stage = Stage::Body(Body::Unknown),
            }
        }
    }

    /// The response ends with its connection, so no other can follow.
    pub(super) const fn is_last(&self) -> bool {
        matches!(&self.stage, Stage::Body(Body::UntilClose))
    }

    /// More bytes must come.
    pub(super) fn is_surely_incomplete(&self) -> bool {
        match &self.stage {
            Stage::Head(_) => true,
            Stage::Body(body) => body.is_surely_incomplete(self.tail),
        }
    }

    /// Bytes that are still to come, where that is known.
    pub(super) const fn left(&self) -> Option<u64> {
        match &self.stage {
            Stage::Head(_) => None,
            Stage::Body(body) => body.left(),
        }
    }

    /// Bytes behind the head.
    pub(super) fn body_bytes(&self) -> Option<u64> {
        let head = self.head.as_ref()?;
        match &self.stage {
            _ if !head.cut => Some(self.bytes.saturating_sub(head.size() as u64)),
            Stage::Body(Body::RestOfHead) => Some(0),
            Stage::Body(Body::AtLeast(bytes)) if self.bytes >= *bytes => head.framing.content_length,
            _ => None,
        }
    }
}
