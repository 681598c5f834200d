use super::*;
use tokio::time::{Instant, timeout};

#[tokio::test(start_paused = true)]
async fn the_timeout_runs_only_while_the_caller_is_awaited_and_restarts_with_each_frame() {
    let progress = Arc::new(WriteProgress::default());
    let limit = Duration::from_secs(30);
    let mut unread =
        WriteTimeout { progress: progress.clone(), timeout: limit, last_frames: 0, timer: None, evicted: None };
    let hour = Duration::from_secs(3_600);
    assert!(timeout(hour, &mut unread).await.is_err(), "no limit for the handler");
    progress.frames.store(1, Ordering::Relaxed);
    assert!(timeout(limit / 2, &mut unread).await.is_err());
    progress.frames.store(2, Ordering::Relaxed);
    let began = Instant::now();
    unread.await;
    assert_eq!(began.elapsed(), limit);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_stream_is_cut_off_soon_although_its_caller_reads_nothing() {
    let (progress, evicted) = (Arc::new(WriteProgress::default()), CancellationToken::new());
    let limit = Duration::from_secs(30);
    let mut unread =
        WriteTimeout { progress: progress.clone(), timeout: limit, last_frames: 0, timer: None, evicted: None };
    WRITE_PROGRESS.scope(progress, async { end_after_eviction(evicted.clone()) }).await;
    assert!(timeout(Duration::from_secs(3_600), &mut unread).await.is_err(), "not evicted yet");
    evicted.cancel();
    let began = Instant::now();
    assert!(matches!(unread.await, Cause::Evicted));
    assert_eq!(began.elapsed(), EVICTION_TIMEOUT);
}
