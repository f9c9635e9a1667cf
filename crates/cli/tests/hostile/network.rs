//! What functions may connect to, over the forwarder, against servers at this machine's own address.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use serde_json::{Value, json};

use crate::support::{Node, is_root, until};

const LONG: &str = "memory = \"128MB\"\ntimeout = \"30s\"\n";

/// An address of this machine that is not loopback, if it has one: where packets of a socket to the outside would come from.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.200:9").ok()?;
    match socket.local_addr().unwrap().ip() {
        IpAddr::V4(address) if !address.is_loopback() => Some(address),
        IpAddr::V4(_) | IpAddr::V6(_) => {
            println!("no address but loopback: nothing was tested");
            None
        }
    }
}

/// Answers `hello N` with `world` and N bytes more, then closes. Lives as long as the test's process.
fn server(address: Ipv4Addr) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut line = [0; 100];
                let count = stream.read(&mut line).unwrap();
                let bytes = std::str::from_utf8(&line[..count]).unwrap().trim().strip_prefix("hello ").unwrap();
                stream.write_all(b"world").unwrap();
                stream.write_all(&vec![b'z'; bytes.parse().unwrap()]).unwrap();
            });
        }
    });
    port
}

/// Answers datagrams with what they held.
fn echo(address: Ipv4Addr) -> u16 {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..count], from).unwrap();
        }
    });
    port
}

fn tcp(node: &Node, name: &str, host: &str, port: u16, bytes: u64) -> Value {
    node.invoke(name, &json!({"do": "tcp", "host": host, "port": port, "bytes": bytes})).value()
}

fn failed(value: &Value) -> bool {
    value.get("error").is_some() || value["bytes"] == 0
}

#[test]
fn functions_reach_what_they_may_and_nothing_else() {
    let Some(address) = own_address().filter(|_| is_root()) else { return };
    let host = address.to_string();
    let (open, other, datagrams) = (server(address), server(address), echo(address));
    let node = Node::start();
    node.must_deploy("all", LONG);
    node.must_deploy("listed", &format!("{LONG}[network]\noutbound = [\"{host}:{open}\"]\n"));
    node.must_deploy("none", &format!("{LONG}[network]\noutbound = \"none\"\n"));
    for bytes in [0, 5_000_000] {
        let reached = tcp(&node, "all", &host, open, bytes);
        assert_eq!(reached["bytes"], bytes + 5, "{reached}");
    }
    assert_eq!(tcp(&node, "listed", &host, open, 7)["bytes"], 12);
    let half = json!({"do": "tcp", "host": host, "port": open, "bytes": 100_000, "half": true});
    assert_eq!(node.invoke("all", &half).value()["bytes"], 100_005, "an end of one side leaves the other open");
    for (name, host, port) in [
        ("listed", host.as_str(), other),
        ("none", &host, open),
        ("all", "127.0.0.1", open),
        ("all", "127.0.0.1", node.address.port()),
        ("all", &host, node.address.port()),
        ("all", "0.0.0.0", node.address.port()),
        ("all", "169.254.169.254", 80),
    ] {
        let tried = tcp(&node, name, host, port, 0);
        assert!(failed(&tried), "{name} reached {host}:{port}: {tried}");
    }
    let udp = |name: &str| node.invoke(name, &json!({"do": "udp", "host": host, "port": datagrams})).value();
    assert_eq!(udp("all"), "hello");
    assert_eq!((udp("listed"), udp("none")), (json!("TimeoutError"), json!("OSError")));
    let resolve = |name: &str| node.invoke(name, &json!({"do": "resolve", "name": "names.invalid"})).value();
    assert_eq!((resolve("listed"), resolve("none")), (json!("gaierror"), json!("gaierror")));
}

#[test]
fn a_peer_that_does_not_read_holds_back_its_function_alone() {
    let Some(address) = own_address().filter(|_| is_root()) else { return };
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let node = Node::start();
    node.must_deploy("pushy", LONG);
    let before = node.resident();
    let all = 200_u64 << 20;
    let sent = node.invoke("pushy", &json!({"do": "upload", "host": address.to_string(), "port": port, "bytes": all})).value();
    let sent = sent.as_u64().unwrap();
    assert!(0 < sent && sent < all, "{sent} bytes of {all} were taken");
    assert!(node.resident() < before + (32 << 20), "{before} bytes became {}", node.resident());
    node.must_serve("pushy");
}

#[test]
fn an_instance_takes_its_forwarder_along() {
    let Some(address) = own_address().filter(|_| is_root()) else { return };
    let port = server(address);
    let node = Node::start();
    node.must_deploy("short", "memory = \"128MB\"\ntimeout = \"1s\"\n");
    let host = address.to_string();
    let mut before = 0;
    for round in 0..25 {
        assert_eq!(tcp(&node, "short", &host, port, 100)["bytes"], 105);
        node.invoke("short", &json!({"do": "exit"})).failed_as("Runtime.ExitError");
        if round == 4 {
            before = node.descriptors();
        }
    }
    until("descriptors are given back", || node.descriptors() <= before + 5);
}
