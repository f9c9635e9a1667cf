//! What strangers, pages of other sites and functions themselves try against a node.

use serde_json::json;
use tempfile::TempDir;

use super::support::{Answer, ECHO, Node, free_port, invoke_path, request, takt_command};

const MANAGED: [&str; 6] = [
    "GET /v1/functions",
    "GET /v1/node",
    "GET /metrics",
    "PUT /v1/functions/mine",
    "GET /2015-03-31/functions",
    "POST /2015-03-31/functions/mine/invocations",
];

fn check_refused(node: &Node, headers: &[(&str, &str)], why: &str) {
    for line in MANAGED {
        let answer = request(node.address, line, headers, b"{}");
        assert!(matches!(answer.status, 401 | 403), "{why}: {line}: {answer:?}");
        assert!(!answer.text().contains("mine"), "{why}: {line} says something of the function: {answer:?}");
    }
}

#[test]
fn nothing_is_managed_without_the_key_or_from_another_site() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    node.python("mine", "", ECHO);
    let bearer = format!("Bearer {}", node.token);
    let right = ("Authorization", bearer.as_str());
    check_refused(&node, &[], "no key");
    check_refused(&node, &[("Authorization", "Bearer wrong")], "a wrong token");
    check_refused(&node, &[("Authorization", &bearer[..bearer.len() - 1])], "half a token");
    check_refused(&node, &[right, ("Host", "evil.example")], "a rebound name");
    check_refused(&node, &[right, ("Host", &format!("evil.example:{}", node.address.port()))], "a rebound name with the port");
    check_refused(&node, &[right, ("Origin", "http://evil.example")], "a page of another site");
    check_refused(&node, &[right, ("Sec-Fetch-Site", "cross-site")], "a page of another site, by the browser's word");
    assert_eq!(node.request("GET", "/v1/functions", &[("Origin", &node.url())], b"").status, 200);
    assert_eq!(node.invoke("mine", &json!(1)).json(), json!(1));
    node.stop();
}

#[test]
fn keys_and_environments_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let keys = data.join("keys.json");
    for private in [&data, &keys, &data.join("store.sqlite3")] {
        assert_eq!(std::fs::metadata(private).unwrap().permissions().mode() & 0o077, 0, "{}", private.display());
    }
    node.stop();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = takt_command(&data).args(["serve", "--listen", &format!("127.0.0.1:{}", free_port())]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("keys.json"), "{refused:?}");
}

fn status(node: &Node, token: &str, line: &str) -> u16 {
    request(node.address, line, &[("Authorization", &format!("Bearer {token}"))], b"1").status
}

#[test]
fn new_keys_close_the_node_to_the_old_ones_at_once() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    node.python("mine", "", ECHO);
    node.python("promised", "[guarantee]\nrate = \"1/s\"\nburst = 8\nmax_run_time = \"20ms\"\nstart_within = \"1s\"\n", ECHO);
    let invoke = |name| format!("POST {}", invoke_path(name));
    // One for the management front, one for each lane.
    let doors = ["GET /v1/functions".to_owned(), invoke("mine"), invoke("promised")];
    let old = node.token.clone();
    assert_eq!(doors.each_ref().map(|line| status(&node, &old, line)), [200; 3]);
    let keys = node.takt_json(&["keys", "rotate"]);
    let new = keys["TAKT_TOKEN"].as_str().unwrap();
    assert_eq!(doors.each_ref().map(|line| status(&node, &old, line)), [401, 403, 403]);
    assert_eq!(doors.each_ref().map(|line| status(&node, new, line)), [200; 3]);
    let said = node.takt_json(&["env"]);
    assert_eq!(said, keys, "`takt env` reads the new ones");
    assert_eq!(node.takt_json(&["list"])["functions"].as_array().map(Vec::len), Some(2));
    node.stop();
    let node = Node::start(&data, &[]);
    assert_eq!(node.token, new, "the next start reads the new ones");
    node.stop();
    assert_eq!(super::evidence::audit(&data)["verdict"], "kept");
}

#[test]
fn two_nodes_do_not_share_a_data_directory() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    let node = Node::start(&data, &[]);
    let second = takt_command(&data).args(["serve", "--listen", &format!("127.0.0.1:{}", free_port())]).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another node"), "{second:?}");
    node.stop();
}

#[test]
fn a_node_that_listens_everywhere_asks_for_its_key_everywhere() {
    let home = TempDir::new().unwrap();
    let node = Node::start_on(&format!("0.0.0.0:{}", free_port()), &home.path().join("node"), &[]);
    node.python("mine", "", ECHO);
    for address in addresses_of_this_machine().iter().filter_map(|it| it.parse::<std::net::Ipv4Addr>().ok()) {
        let address = std::net::SocketAddr::from((address, node.address.port()));
        if std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(1)).is_err() {
            continue;
        }
        let closed = request(address, "GET /v1/functions", &[], b"");
        assert!(matches!(closed.status, 401 | 403), "{address}: {closed:?}");
        let bearer = format!("Bearer {}", node.token);
        let opened = request(address, "GET /v1/functions", &[("Authorization", &bearer)], b"");
        assert_eq!(opened.status, 200, "{address}: {opened:?}");
        let rebound = request(address, "GET /v1/functions", &[("Authorization", &bearer), ("Host", "evil.example")], b"");
        assert_eq!(rebound.status, 403, "{address}: {rebound:?}");
    }
    node.stop();
}

/// Tries a node's management API from inside an instance: by loopback, by the addresses of the machine, by the gateway.
const INTRUDER: &str = r#"
import socket

def attempt(address, port):
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            connection.settimeout(2)
            connection.sendall(b"GET /v1/node HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n\r\n" % (port, TOKEN))
            return connection.recv(100).decode("latin-1")
    except OSError as error:
        return "none: %s" % error

TOKEN = b""

def handler(event, context):
    global TOKEN
    TOKEN = event["token"].encode()
    return {address: attempt(address, event["port"]) for address in event["addresses"]}
"#;

/// Addresses of this machine, and one that the kernel takes for it too.
fn addresses_of_this_machine() -> Vec<String> {
    let listed = std::process::Command::new("hostname").arg("-I").output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut addresses: Vec<String> = listed.split_whitespace().filter(|it| !it.contains(':')).map(str::to_owned).collect();
    addresses.extend(["127.0.0.1", "127.0.0.2", "0.0.0.0", "169.254.0.1", "10.0.2.2"].map(str::to_owned));
    addresses
}

fn check_intruder(node: &Node, answer: &Answer) {
    let results = answer.json();
    let results = results.as_object().unwrap_or_else(|| panic!("{answer:?}"));
    assert!(4 <= results.len());
    for (address, result) in results {
        assert!(
            !result.as_str().unwrap().starts_with("HTTP/"),
            "an instance reached {address}:{}: {result}",
            node.address.port()
        );
    }
}

#[test]
fn an_instance_does_not_reach_the_management_api_even_with_the_token() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("node");
    for listen in [format!("127.0.0.1:{}", free_port()), format!("0.0.0.0:{}", free_port())] {
        let node = Node::start_on(&listen, &data, &[]);
        for outbound in ["all", "none"] {
            let further = format!("timeout = \"30s\"\n[network]\noutbound = \"{outbound}\"\n");
            node.python("intruder", &further, INTRUDER);
            let event = json!({
                "token": node.token, "port": node.address.port(), "addresses": addresses_of_this_machine(),
            });
            let body = event.to_string();
            let answer = node.request("POST", &invoke_path("intruder"), &[], body.as_bytes());
            check_intruder(&node, &answer);
        }
        node.stop();
    }
}

#[test]
fn broken_requests_are_answered_or_closed_and_the_node_goes_on() {
    use std::io::{Read, Write};
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    node.python("mine", "", ECHO);
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    let both = "POST /fn/mine/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for bytes in ["\r\n\r\n\r\n", "NONSENSE\r\n\r\n", &long, &many, both, "GET / HTTP/9.9\r\n\r\n", "\0\u{1}\u{2}\r\n\r\n"] {
        let mut stream = std::net::TcpStream::connect(node.address).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        // The node may close before it has read everything.
        let _ = stream.write_all(bytes.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"), "{answer}");
    }
    assert_eq!(node.invoke("mine", &json!(1)).json(), json!(1));
    node.stop();
}
