//! A node that says what a test wants it to say, and the tool run against it.
#![allow(dead_code, reason = "each test uses its part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

/// What the tool asked.
#[derive(Debug)]
pub(crate) struct Request {
    /// `METHOD /path`.
    pub(crate) line: String,
    pub(crate) authorization: String,
    pub(crate) body: String,
}

/// Answers every request by a rule; it lives as long as the test's process.
pub(crate) struct FakeNode {
    pub(crate) url: String,
    requests: Receiver<Request>,
}

impl FakeNode {
    pub(crate) fn start(rule: fn(&str) -> (u16, &'static str)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (told, requests) = sync_channel(64);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let request = answer(&mut stream.unwrap(), rule);
                if told.send(request).is_err() {
                    return;
                }
            }
        });
        Self { url, requests }
    }

    /// The next request, which must come within `limit`.
    pub(crate) fn next(&self, limit: Duration) -> Request {
        self.requests.recv_timeout(limit).unwrap()
    }

    /// Everything asked so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.requests.try_iter().collect()
    }
}

/// In every answer: the Runtime API's name of an invocation.
const HEADERS: &str = "Lambda-Runtime-Aws-Request-Id: request-1\r\n";

fn answer(stream: &mut TcpStream, rule: fn(&str) -> (u16, &'static str)) -> Request {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut authorization, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut line).unwrap();
    let line = line.rsplit_once(" HTTP/").unwrap().0.to_owned();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let (status, text) = rule(&line);
    write!(stream, "HTTP/1.1 {status} Said\r\n{HEADERS}Content-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len())
        .unwrap();
    Request { line, authorization, body: String::from_utf8(body).unwrap() }
}

/// Runs the tool as a user would, with nothing of this process's environment.
pub(crate) fn takt(words: &[&str], home: &Path) -> Output {
    let path = std::env::var_os("PATH").unwrap();
    Command::new(env!("CARGO_BIN_EXE_takt")).args(words).env_clear().env("PATH", path).env("HOME", home).output().unwrap()
}
