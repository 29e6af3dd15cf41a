//! An event API that does next to nothing, so that a benchmark measures the daemon. It counts a
//! request's events by their name and answers as many ids. The fake would check and keep every
//! event, which takes longer than the daemon needs for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running sink.
pub(crate) struct Sink {
    pub(crate) url: String,
    counted: watch::Receiver<usize>,
    times: Arc<Mutex<Option<(Instant, Instant)>>>,
}

impl Sink {
    /// Answers requests whose events are called `name`.
    pub(crate) async fn start(name: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (sender, counted) = watch::channel(0);
        let times = Arc::new(Mutex::new(None));
        let (sender, noted) = (Arc::new(sender), Arc::clone(&times));
        let needle: Arc<str> = format!("\"name\":\"{name}\"").into();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, noted, needle) =
                    (Arc::clone(&sender), Arc::clone(&noted), Arc::clone(&needle));
                tokio::spawn(serve(stream, needle, move |events| {
                    let now = Instant::now();
                    let mut times = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    let first = times.map_or(now, |(first, _)| first);
                    *times = Some((first, now));
                    sender.send_modify(|counted| *counted += events);
                }));
            }
        });
        Ok(Self { url, counted, times })
    }

    /// Waits until it has got so many events.
    pub(crate) async fn until(&self, events: usize) -> anyhow::Result<()> {
        self.counted.clone().wait_for(|counted| *counted >= events).await?;
        Ok(())
    }

    /// How many events it has got, and the time from its first to its last answer.
    pub(crate) fn result(&self) -> (usize, Duration) {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        (*self.counted.borrow(), times.map(|(first, last)| last - first).unwrap_or_default())
    }
}

/// Answers the requests of one connection until it is closed.
async fn serve(
    mut stream: TcpStream,
    needle: Arc<str>,
    note: impl Fn(usize),
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let finder = memmem::Finder::new(needle.as_bytes());
    let mut bytes = Vec::with_capacity(1 << 20);
    loop {
        let head = loop {
            if let Some(end) = memmem::find(&bytes, b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let length = content_length(&bytes[..head]).context("a request has a length")?;
        while bytes.len() < head + length {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        let events = finder.find_iter(&bytes[head..head + length]).count();
        bytes.drain(..head + length);
        let ids = vec!["\"0\""; events].join(",");
        let body = format!("{{\"ids\":[{ids}],\"status\":200}}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        note(events);
        stream.write_all(answer.as_bytes()).await?;
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = str::from_utf8(head).ok()?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    length.trim().parse().ok()
}
