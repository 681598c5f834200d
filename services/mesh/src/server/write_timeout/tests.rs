use super::*;
use tokio::time::{Instant, timeout};

#[tokio::test(start_paused = true)]
async fn the_timeout_runs_only_while_the_caller_is_awaited_and_restarts_with_each_frame() {
    let sending = Arc::new(WriteProgress::default());
    let limit = Duration::from_secs(30);
    let mut stalled = WriteTimeout { sending: sending.clone(), timeout: limit, seen: 0, alarm: None, leave: None };
    let hour = Duration::from_secs(3_600);
    assert!(timeout(hour, &mut stalled).await.is_err(), "no limit for the handler");
    sending.frames.store(1, Ordering::Relaxed);
    assert!(timeout(limit / 2, &mut stalled).await.is_err());
    sending.frames.store(2, Ordering::Relaxed);
    let began = Instant::now();
    stalled.await;
    assert_eq!(began.elapsed(), limit);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_stream_is_cut_off_soon_although_its_caller_reads_nothing() {
    let (sending, leave) = (Arc::new(WriteProgress::default()), CancellationToken::new());
    let limit = Duration::from_secs(30);
    let mut stalled = WriteTimeout { sending: sending.clone(), timeout: limit, seen: 0, alarm: None, leave: None };
    WRITE_PROGRESS.scope(sending, async { end_after_eviction(leave.clone()) }).await;
    assert!(timeout(Duration::from_secs(3_600), &mut stalled).await.is_err(), "not evicted yet");
    leave.cancel();
    let began = Instant::now();
    assert!(matches!(stalled.await, Cause::Evicted));
    assert_eq!(began.elapsed(), LEAVE_TIMEOUT);
}
