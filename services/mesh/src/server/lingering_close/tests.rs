use super::*;
use tokio::io::duplex;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn it_ends_when_the_peer_closes_or_after_a_timeout() {
    for closes in [true, false] {
        let (ours, mut theirs) = duplex(64);
        let (lent, returned) = return_on_drop(ours);
        drop(lent);
        let began = Instant::now();
        let lingering = tokio::spawn(linger(returned.await.expect("handed back")));
        assert_eq!(theirs.read(&mut [0]).await.expect("read"), 0, "end of file");
        theirs.write_all(&[7; 1_000]).await.expect("late input is accepted");
        if closes {
            drop(theirs);
        }
        lingering.await.expect("no panic");
        assert_eq!(began.elapsed(), if closes { Duration::ZERO } else { LINGER });
    }
}
