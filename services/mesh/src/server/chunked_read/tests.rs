use super::*;
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn a_poll_reads_one_portion_and_the_next_poll_continues() {
    let budget = PollBudget::default();
    let all = vec![7; 5 * CHUNK_BYTES / 2];
    let mut stream = read_in_chunks([1; PREFACE_AND_HEAD_BYTES], &all[..], budget.clone());
    let mut counts = vec![];
    let mut buffer = vec![0; 1_000];
    let mut polls = 0;
    loop {
        let mut count = 0;
        let mut reading = std::pin::pin!(async {
            loop {
                match stream.read(&mut buffer).await.expect("read") {
                    0 => break,
                    read => count += read,
                }
            }
        });
        let ended = futures_util::FutureExt::now_or_never(budget.per_poll(reading.as_mut())).is_some();
        counts.push(count);
        polls += 1;
        if ended {
            break;
        }
    }
    assert_eq!((polls, counts.iter().sum::<usize>()), (3, PREFACE_AND_HEAD_BYTES + all.len()));
    assert!(counts[..2].iter().all(|count| (CHUNK_BYTES..CHUNK_BYTES + 2_000).contains(count)), "{counts:?}");
}
