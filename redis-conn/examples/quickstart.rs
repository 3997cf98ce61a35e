//! A message from one handle to another, with nothing installed; `SQLITE_PATH` or `REDIS_URL` carries it between processes.
//!
//! ```text
//! cargo run -p redis-conn --example quickstart
//! ```
//!
//! expected output:
//! > memory is connected
//! > heard: hello

use std::{error::Error, time::Duration};

use redis_conn::{Backend, Event};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = Backend::from_env().await?;
    backend.ready(Duration::from_secs(10)).await?;
    println!("{} is {}", backend.kind(), backend.state());

    let bus = backend.bus();
    let mut news = bus.subscribe("news").await?;
    bus.publish("news", b"hello").await?;
    while let Some(event) = news.recv().await {
        match event {
            Event::Message(message) => {
                println!("heard: {}", String::from_utf8_lossy(message.payload()));
                break;
            }
            _ => println!("a message may have been lost"),
        }
    }
    backend.close(Duration::from_secs(5)).await?;
    Ok(())
}
