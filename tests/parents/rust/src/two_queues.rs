//! Threads of the standard library that take turns: any of them reads requests, and any of them does the work
//! that another one has read. Two queues: connections that wait to be read, which go first, and requests that wait
//! to be answered.

use std::collections::VecDeque;
use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

const THREADS: usize = 8;

struct Connection {
    stream: BufReader<TcpStream>,
}

struct Request {
    path: String,
    id: u64,
    from: Connection,
}

#[derive(Default)]
struct Queues {
    unread: VecDeque<Connection>,
    unanswered: VecDeque<Request>,
}

#[derive(Default)]
struct Server {
    queues: Mutex<Queues>,
    ready: Condvar,
}

enum Turn {
    Read(Connection),
    Answer(Request),
}

impl Server {
    fn next(&self) -> Turn {
        let mut queues = self.queues.lock().unwrap();
        loop {
            if let Some(connection) = queues.unread.pop_front() {
                return Turn::Read(connection);
            }
            if let Some(request) = queues.unanswered.pop_front() {
                return Turn::Answer(request);
            }
            queues = self.ready.wait(queues).unwrap();
        }
    }

    fn add_unread(&self, connection: Connection) {
        self.queues.lock().unwrap().unread.push_back(connection);
        self.ready.notify_one();
    }

    fn add_unanswered(&self, request: Request) {
        self.queues.lock().unwrap().unanswered.push_back(request);
        self.ready.notify_one();
    }
}

fn number(path: &str) -> u64 {
    path.rsplit_once("id=").and_then(|(_, text)| text.parse().ok()).unwrap_or(0)
}

/// Reads one message: its first line, and its body, which is thrown away.
fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut first = String::new();
    if stream.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(first))
}

/// Each thread has a connection to the backend of its own, and keeps it.
struct Backend {
    address: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Backend {
    fn call(&mut self, path: &str) -> io::Result<()> {
        if self.stream.is_none() {
            self.stream = Some(BufReader::new(TcpStream::connect(&self.address)?));
        }
        let stream = self.stream.as_mut().unwrap();
        write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)?;
        read(stream)?.map(|_| ()).ok_or_else(|| io::Error::other("the backend has closed"))
    }
}

fn work(server: &Server, backend: &mut Backend) -> io::Result<()> {
    match server.next() {
        Turn::Read(mut connection) => {
            if let Some(line) = read(&mut connection.stream)? {
                let target = line.split(' ').nth(1).unwrap_or("").to_string();
                let (path, _) = target.split_once('?').unwrap_or((&target, ""));
                let (path, id) = (path.to_string(), number(&target));
                server.add_unanswered(Request { path, id, from: connection });
            }
        }
        Turn::Answer(mut request) => {
            if request.path == "/sleep" {
                thread::sleep(Duration::from_millis(10));
            }
            backend.call(&format!("/call?id={}", request.id))?;
            let stream = request.from.stream.get_mut();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")?;
            server.add_unread(request.from);
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let port = env::var("PORT").expect("PORT").parse().expect("a port");
    let url = env::var("BACKEND").expect("BACKEND");
    let server = Arc::new(Server::default());
    for _ in 0..THREADS {
        let server = server.clone();
        let address = url.trim_start_matches("http://").to_string();
        thread::spawn(move || {
            let mut backend = Backend { address, stream: None };
            loop {
                if let Err(error) = work(&server, &mut backend) {
                    eprintln!("{error}");
                }
            }
        });
    }
    for stream in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        server.add_unread(Connection { stream: BufReader::new(stream?) });
    }
    Ok(())
}
