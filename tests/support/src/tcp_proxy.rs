//! A proxy to a server. It can go silent, or lead elsewhere.

use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Passes connections on to a server. Ends when dropped.
pub struct TcpProxy {
    address: String,
    server: Arc<Mutex<String>>,
    silence: watch::Sender<()>,
    task: AbortHandle,
}

impl TcpProxy {
    /// To the server at `host:port`.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let server = Arc::new(Mutex::new(server.to_owned()));
        let silence = watch::Sender::new(());
        let (current, silenced) = (Arc::clone(&server), silence.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let server = current.lock().expect("not poisoned").clone();
                let mut silenced = silenced.subscribe();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await.expect("the server is there");
                    tokio::select! {
                        // Either side may go at any time.
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        // The connection is held open, but passes nothing.
                        _ = silenced.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { address, server, silence, task: task.abort_handle() }
    }

    /// Where it listens, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Open connections stay open, but nothing passes through them any more.
    pub fn silence(&self) {
        self.silence.send_replace(());
    }

    /// Later connections go to another server.
    pub fn lead_to(&self, server: &str) {
        server.clone_into(&mut self.server.lock().expect("not poisoned"));
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
