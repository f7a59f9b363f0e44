//! The thread on which requests run, and how often they are tried.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::Limits;
use super::bucket::random;
use super::error::unavailable;
use crate::store::StoreError;
use crate::telemetry::chain;

/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A thread that does what others wait for: it can be used from any thread, and is not held up by a busy server.
pub(super) struct Io {
    runtime: Handle,
    /// The thread ends when this goes.
    _running: oneshot::Sender<()>,
}

/// An answer that is on its way.
pub(super) struct Pending<T> {
    path: String,
    answer: mpsc::Receiver<Result<T, StoreError>>,
}

impl Io {
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("store-io".to_owned()).spawn(move || {
            // The other end sends nothing; it goes.
            let _gone = runtime.block_on(ended);
        })?;
        Ok(Arc::new(Self { runtime: handle, _running: running }))
    }

    /// Starts some work.
    pub(super) fn begin<T: Send + 'static>(
        self: &Arc<Self>,
        path: &str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Pending<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        let io = Arc::clone(self);
        self.runtime.spawn(async move {
            // Whoever asked may have gone.
            let _unheard = answer.send(work.await);
            drop(io);
        });
        Pending { path: path.to_owned(), answer: answered }
    }

    /// Does some work.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        path: &str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begin(path, work).wait()
    }
}

impl<T> Pending<T> {
    /// Waits for the answer.
    pub(super) fn wait(self) -> Result<T, StoreError> {
        let gone = |_| Err(unavailable(&self.path, "the thread of the bucket is gone"));
        self.answer.recv().unwrap_or_else(gone)
    }

    /// Waits for the answer, but not for long; the work goes on.
    pub(super) fn wait_at_most(self, limit: Duration) {
        let _late = self.answer.recv_timeout(limit);
    }
}

/// Tries until it works, fails for good, or the time is over.
pub(super) async fn attempts<T, F: Future<Output = Result<T, StoreError>>>(
    limits: Limits,
    path: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let end = Instant::now() + limits.total;
    let mut pause = limits.pause;
    loop {
        let error = match timeout_at(end.min(Instant::now() + limits.attempt), attempt()).await {
            Ok(Err(error @ StoreError::Unavailable { .. })) => error,
            Ok(outcome) => return outcome,
            Err(_) => unavailable(path, format!("no answer within {:?}", limits.attempt.min(limits.total))),
        };
        // Many that failed at once do not come back at once.
        let wait = pause.mul_f64(0.5 + (random() % 1_000) as f64 / 1_000.0);
        if Instant::now() + wait >= end {
            return Err(error);
        }
        debug!(path, error = %chain(&error), ?wait, "trying again");
        sleep(wait).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// The same for what creates something. Nobody may take it for not done once a try got no answer: what such a try has begun
/// may still be done, whatever a later one is told.
pub(super) async fn attempts_to_create<F: Future<Output = Result<(), StoreError>>>(
    limits: Limits,
    path: &str,
    mut attempt: impl FnMut() -> F,
) -> Result<(), StoreError> {
    let mut tries = 0_u32;
    let outcome = attempts(limits, path, || {
        tries += 1;
        attempt()
    });
    match outcome.await {
        Err(error @ (StoreError::Denied { .. } | StoreError::Full { .. })) if tries > 1 => {
            Err(unavailable(path, error))
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rstest::rstest;

    use super::*;

    const LIMITS: Limits = Limits {
        attempt: Duration::from_millis(60),
        total: Duration::from_millis(300),
        pause: Duration::from_millis(2),
    };

    fn wait_for<T>(work: impl Future<Output = T>) -> T {
        Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let tries = Cell::new(0);
        let outcome = wait_for(attempts(LIMITS, "a", || {
            tries.set(tries.get() + 1);
            let number = tries.get();
            async move { if number < 5 { Err(unavailable("a", "busy")) } else { Ok(number) } }
        }));
        assert_eq!(outcome.unwrap(), 5);
    }

    #[test]
    fn what_does_not_pass_is_tried_once() {
        let tries = Cell::new(0);
        let outcome: Result<(), _> = wait_for(attempts(LIMITS, "a", || {
            tries.set(tries.get() + 1);
            async { Err(StoreError::NotFound { path: "a".to_owned() }) }
        }));
        assert!(matches!(outcome, Err(StoreError::NotFound { .. })));
        assert_eq!(tries.get(), 1);
    }

    #[rstest]
    #[case::at_once(0, false, false)]
    #[case::after_a_failure(1, false, true)]
    #[case::after_silence(1, true, true)]
    fn what_may_have_been_created_is_not_refused(#[case] failures: u32, #[case] hangs: bool, #[case] is_unsure: bool) {
        let full = || StoreError::Full { path: "a".to_owned(), source: "full".into() };
        let denied = || StoreError::Denied { path: "a".to_owned(), source: "denied".into() };
        for refusal in [full as fn() -> StoreError, denied] {
            let tries = Cell::new(0);
            let outcome = wait_for(attempts_to_create(LIMITS, "a", || {
                tries.set(tries.get() + 1);
                let number = tries.get();
                async move {
                    match number <= failures {
                        true if hangs => std::future::pending().await,
                        true => Err(unavailable("a", "busy")),
                        false => Err(refusal()),
                    }
                }
            }));
            assert_eq!(matches!(outcome, Err(StoreError::Unavailable { .. })), is_unsure, "{outcome:?}");
            assert_eq!(tries.get(), failures + 1);
        }
        let taken = wait_for(attempts_to_create(LIMITS, "a", {
            let tries = Cell::new(0);
            move || {
                tries.set(tries.get() + 1);
                let number = tries.get();
                async move {
                    let taken = StoreError::AlreadyExists { path: "a".to_owned() };
                    Err(if number <= failures { unavailable("a", "busy") } else { taken })
                }
            }
        }));
        assert!(matches!(taken, Err(StoreError::AlreadyExists { .. })), "{taken:?}");
    }

    #[test]
    fn nothing_takes_longer_than_the_limit() {
        wait_for(async {
            for hangs in [false, true] {
                let begin = Instant::now();
                let tries = Cell::new(0);
                let outcome: Result<(), _> = attempts(LIMITS, "a", || {
                    tries.set(tries.get() + 1);
                    async move {
                        if hangs {
                            std::future::pending::<()>().await;
                        }
                        Err(unavailable("a", "busy"))
                    }
                })
                .await;
                assert!(matches!(outcome, Err(StoreError::Unavailable { .. })));
                // More than the limit only by what a busy machine adds.
                assert!(begin.elapsed() < LIMITS.total * 10, "{:?}", begin.elapsed());
                assert!((2..40).contains(&tries.get()), "{} tries", tries.get());
            }
        });
    }
}
