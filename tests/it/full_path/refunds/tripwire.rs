//! A proxy that stops at a chosen request: before the server gets it, or before its answer returns.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Where it stops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trip {
    /// What the request contains.
    pub(super) text: &'static str,
    /// Which of these requests it is, counted from 1.
    pub(super) nth: u32,
    /// Whether the server gets this request.
    pub(super) handled: bool,
}

/// What the connections share.
struct Wire {
    armed: Mutex<Option<Trip>>,
    /// Once stopped, nothing passes until it is armed again.
    stopped: watch::Sender<bool>,
}

/// Passes connections on to a server. Ends when dropped.
pub(super) struct Tripwire {
    address: String,
    wire: Arc<Wire>,
    task: AbortHandle,
}

impl Tripwire {
    /// To the server at `host:port`.
    pub(super) async fn to(server: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let wire = Arc::new(Wire { armed: Mutex::default(), stopped: watch::Sender::new(false) });
        let shared = Arc::clone(&wire);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("the server is there");
                tokio::spawn(pass(client, server, Arc::clone(&shared)));
            }
        });
        Self { address, wire, task: task.abort_handle() }
    }

    /// Where it listens, `host:port`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Stops at a request from now on, or at none. Connections that stand still are gone.
    pub(super) fn arm(&self, trip: Option<Trip>) {
        *self.wire.armed.lock().expect("not poisoned") = trip;
        self.wire.stopped.send_replace(false);
    }

    /// Waits until it has stopped.
    pub(super) async fn tripped(&self) {
        let mut stopped = self.wire.stopped.subscribe();
        stopped.wait_for(|stopped| *stopped).await.expect("the wire is there");
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, server: TcpStream, wire: Arc<Wire>) {
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a socket");
    }
    let ((mut asks, mut answered), (mut answers, mut asked)) =
        (client.into_split(), server.into_split());
    let requests = async {
        let mut chunk = vec![0; 1 << 16];
        loop {
            let Ok(size @ 1..) = asks.read(&mut chunk).await else { return };
            let trips = wire.trips(&chunk[..size]);
            if trips != Some(false) && asked.write_all(&chunk[..size]).await.is_err() {
                return;
            }
            if trips.is_some() || *wire.stopped.borrow() {
                std::future::pending::<()>().await;
            }
        }
    };
    let replies = async {
        let mut chunk = vec![0; 1 << 16];
        loop {
            let Ok(size @ 1..) = answers.read(&mut chunk).await else { return };
            if *wire.stopped.borrow() {
                std::future::pending::<()>().await;
            }
            if answered.write_all(&chunk[..size]).await.is_err() {
                return;
            }
        }
    };
    let over = async {
        let mut stopped = wire.stopped.subscribe();
        while stopped.wait_for(|stopped| *stopped).await.is_ok() {
            if stopped.wait_for(|stopped| !*stopped).await.is_ok() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
        () = over => {}
    }
}

impl Wire {
    /// Whether the server gets a request that stops here; `None` for one that does not.
    fn trips(&self, chunk: &[u8]) -> Option<bool> {
        let mut armed = self.armed.lock().expect("not poisoned");
        let trip = armed.as_mut()?;
        let text = trip.text.as_bytes();
        if !chunk.windows(text.len()).any(|window| window == text) {
            return None;
        }
        trip.nth -= 1;
        if trip.nth > 0 {
            return None;
        }
        let handled = trip.handled;
        *armed = None;
        drop(armed);
        self.stopped.send_replace(true);
        Some(handled)
    }
}
