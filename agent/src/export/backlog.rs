//! What one endpoint has not taken yet.
//!
//! Requests wait in memory while the endpoint answers. When it does not, or is too slow, everything moves to disk, in
//! order, and what comes then goes there too, until nothing is left on disk: so all that is on disk is older than all
//! that is in memory. Without a queue on disk requests wait in memory, and the newest are dropped when it is full.

use std::{collections::VecDeque, time::Duration};

use super::{
    Encoded,
    causes::with_causes,
    disk::{DiskQueue, Folder, Losses, QueueError, QueueSettings},
};

/// A queue on disk that is not read yet: only its folder is known to be good.
#[derive(Debug)]
pub(super) struct Unopened {
    pub(super) folder: Folder,
    pub(super) settings: QueueSettings,
}

impl Unopened {
    /// The queue of the endpoint with this name; no other agent may have it.
    pub(super) fn new(settings: &QueueSettings, name: &str) -> Result<Self, QueueError> {
        Ok(Self { folder: Folder::lock(settings.directory.join(folder_name(name)))?, settings: settings.clone() })
    }
}

/// What an endpoint's folder is called: its name if that can be one, else what is left of it and a number made of it.
fn folder_name(name: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    if name.chars().all(is_plain) && !name.is_empty() && name.len() <= 64 {
        return name.to_owned();
    }
    let plain: String = name.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).take(64).collect();
    format!("{plain}.{:08x}", crc32c::crc32c(name.as_bytes()))
}

/// Requests in the order in which they are to be sent.
#[derive(Debug)]
pub(super) struct Backlog {
    memory: VecDeque<Encoded>,
    /// Spans of `memory`, without those of the request that is under way.
    memory_spans: u64,
    /// So many at most; if there is a queue on disk, half of it.
    max_memory_spans: u64,
    disk: Disk,
    /// The endpoint is away: what comes goes to disk.
    is_away: bool,
    /// The number of the next request.
    next_sequence: u64,
    /// The number of the request under way.
    sending: Option<u64>,
}

#[derive(Debug)]
enum Disk {
    None,
    /// Boxed, because it moves to a thread that may block and back with every call.
    Queue(Box<DiskQueue>),
}

impl Backlog {
    /// Nothing waits but what an earlier agent left on disk.
    pub(super) async fn open(max_memory_spans: u64, disk: Option<Unopened>) -> Self {
        let queue = match disk {
            None => None,
            Some(Unopened { folder, settings }) => {
                let opened = tokio::task::spawn_blocking(move || DiskQueue::open(folder, &settings)).await;
                opened.ok().and_then(|opened| {
                    opened
                        .inspect_err(|error| {
                            let error = with_causes(error);
                            tracing::error!(error, "nothing waits on disk: what the endpoint does not take is lost");
                        })
                        .ok()
                })
            }
        };
        let next_sequence = queue.as_ref().map_or(0, DiskQueue::next_sequence);
        let disk = queue.map_or(Disk::None, |queue| Disk::Queue(Box::new(queue)));
        Self {
            memory: VecDeque::new(),
            memory_spans: 0,
            max_memory_spans,
            disk,
            is_away: false,
            next_sequence,
            sending: None,
        }
    }

    /// Whether there is a queue on disk.
    pub(super) fn has_disk(&self) -> bool {
        matches!(self.disk, Disk::Queue(_))
    }

    /// Spans that wait in memory, without those under way.
    pub(super) const fn memory_spans(&self) -> u64 {
        self.memory_spans
    }

    /// Spans that wait on disk.
    pub(super) fn disk_spans(&self) -> u64 {
        self.queue().map_or(0, DiskQueue::spans)
    }

    /// Bytes of the files on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.queue().map_or(0, DiskQueue::bytes)
    }

    /// When the oldest request on disk was queued, nanoseconds since the epoch.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.queue().and_then(DiskQueue::oldest_ns)
    }

    /// Whether the endpoint is taken for one that is away.
    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    /// True if nothing is in memory: what waits on disk outlives the agent.
    pub(super) fn is_safe(&self) -> bool {
        self.memory.is_empty()
    }

    /// True if nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.queue().is_none_or(DiskQueue::is_empty)
    }

    /// Takes a request; gives the spans of it that there is no room for.
    pub(super) async fn push(&mut self, request: Encoded) -> u64 {
        let spans = request.spans;
        let is_full = self.memory_spans + spans > self.max_memory_spans;
        if !self.has_disk() && is_full {
            return spans;
        }
        let request = Encoded { sequence: self.next_sequence, ..request };
        self.next_sequence += 1;
        self.memory.push_back(request);
        self.memory_spans += spans;
        let is_behind = self.queue().is_some_and(|queue| !queue.is_empty());
        if self.is_away || is_behind || self.memory_spans > self.max_memory_spans / 2 {
            self.spill().await;
        }
        // The disk did not take it either.
        if self.memory_spans > self.max_memory_spans && self.memory.pop_back().is_some() {
            self.memory_spans -= spans;
            return spans;
        }
        0
    }

    /// The endpoint is away, or is there again.
    pub(super) async fn set_away(&mut self, is_away: bool) {
        self.is_away = is_away;
        if is_away {
            self.spill().await;
        }
    }

    /// Moves what is in memory to disk. What the disk does not take stays in memory.
    pub(super) async fn spill(&mut self) {
        if self.memory.is_empty() || !self.has_disk() {
            return;
        }
        // Shared, not copied: if the queue panics all of them are still here.
        let mut requests = self.memory.clone();
        let moved = self
            .on_disk(move |queue| {
                let mut result = Ok(());
                while let Some(request) = requests.front() {
                    result = queue.append(request);
                    if result.is_err() {
                        break;
                    }
                    requests.pop_front();
                }
                (requests, result)
            })
            .await;
        let Some((left, result)) = moved else { return };
        self.memory = left;
        self.count_memory();
        if let Err(error) = result {
            say(&error);
        }
    }

    /// The oldest request; it is under way from now on, until [`Backlog::done`], however often it is sent.
    pub(super) async fn oldest(&mut self) -> Option<Encoded> {
        let mut oldest = None;
        if self.queue().is_some_and(|queue| !queue.is_empty()) {
            match self.on_disk(DiskQueue::oldest).await {
                Some(Ok(request)) => oldest = request,
                Some(Err(error)) => {
                    say(&error);
                    // What is in memory is younger: it has to wait.
                    return None;
                }
                None => {}
            }
        }
        let oldest = oldest.or_else(|| self.memory.front().cloned());
        self.sending = oldest.as_ref().map(|request| request.sequence);
        self.count_memory();
        oldest
    }

    /// The request is dealt with. False if it had been given up meanwhile, for want of room.
    pub(super) async fn done(&mut self, request: &Encoded) -> bool {
        self.sending = None;
        let sequence = request.sequence;
        if self.memory.front().is_some_and(|front| front.sequence == sequence) {
            self.memory.pop_front();
            self.count_memory();
            return true;
        }
        match self.on_disk(move |queue| queue.done(sequence)).await {
            Some(Ok(was_there)) => was_there,
            Some(Err(error)) => {
                say(&error);
                true
            }
            None => true,
        }
    }

    /// Takes what is in memory away: spans that are lost.
    pub(super) fn forget_memory(&mut self) -> u64 {
        let spans = self.memory.iter().map(|request| request.spans).sum();
        self.memory.clear();
        self.memory_spans = 0;
        spans
    }

    /// How long until [`Backlog::sync`] is to be called.
    pub(super) fn sync_within(&self) -> Option<Duration> {
        self.queue().and_then(DiskQueue::sync_within)
    }

    /// Makes what is on disk outlive a loss of power.
    pub(super) async fn sync(&mut self) {
        self.on_disk(DiskQueue::sync).await;
    }

    /// What was lost on disk since this was last asked.
    pub(super) fn take_losses(&mut self) -> Losses {
        match &mut self.disk {
            Disk::None => Losses::default(),
            Disk::Queue(queue) => queue.take_losses(),
        }
    }

    fn queue(&self) -> Option<&DiskQueue> {
        match &self.disk {
            Disk::None => None,
            Disk::Queue(queue) => Some(queue),
        }
    }

    /// Calls the queue where blocking does no harm. `None` if there is none (any more: the call panicked).
    async fn on_disk<R: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut DiskQueue) -> R + Send + 'static,
    ) -> Option<R> {
        let Disk::Queue(mut queue) = std::mem::replace(&mut self.disk, Disk::None) else { return None };
        let (queue, result) = tokio::task::spawn_blocking(move || {
            let result = call(&mut queue);
            (queue, result)
        })
        .await
        .inspect_err(|error| tracing::error!(%error, "the export queue on disk is given up"))
        .ok()?;
        self.disk = Disk::Queue(queue);
        Some(result)
    }

    fn count_memory(&mut self) {
        let waiting = self.memory.iter().filter(|request| Some(request.sequence) != self.sending);
        self.memory_spans = waiting.map(|request| request.spans).sum();
    }
}

fn say(error: &QueueError) {
    tracing::error!(error = with_causes(error), "the export queue on disk cannot be used now");
}
