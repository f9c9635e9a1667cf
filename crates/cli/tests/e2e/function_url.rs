//! Functions as web servers: `/fn/NAME/…`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tempfile::TempDir;

use super::support::{Node, request};

const WEB: &str = r#"
import base64

def handler(event, context):
    http = event["requestContext"]["http"]
    if event["rawPath"] == "/picture":
        return {"statusCode": 201, "headers": {"Content-Type": "image/x", "X-Own": "yes"},
                "body": base64.b64encode(bytes(range(256))).decode(), "isBase64Encoded": True,
                "cookies": ["a=1; HttpOnly", "b=2"]}
    if event["rawPath"] == "/fail":
        raise ValueError("secret reason")
    return {"method": http["method"], "path": event["rawPath"], "query": event.get("queryStringParameters"),
            "cookies": event.get("cookies"), "body": event.get("body"), "base64": event["isBase64Encoded"],
            "authorization": event["headers"].get("authorization"), "account": event["requestContext"]["accountId"]}
"#;

#[test]
fn a_function_serves_the_web_at_its_url() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    node.python("web", "url = \"open\"\n", WEB);
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = request(node.address, &format!("{method} /fn/web/a/b?x=1&x=2"), &[("Cookie", "c=3; d=4")], b"");
        assert_eq!((answer.status, answer.header("x-takt-class")), (200, "best-effort"), "{answer:?}");
        let seen = answer.json();
        assert_eq!((&seen["method"], &seen["path"]), (&json!(method), &json!("/a/b")));
        assert_eq!((&seen["query"]["x"], &seen["cookies"]), (&json!("1,2"), &json!(["c=3", "d=4"])));
        assert_eq!(seen["account"], "anonymous");
    }
    let head = request(node.address, "HEAD /fn/web/", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0), "{head:?}");
    let binary: Vec<u8> = (0..=255).collect();
    let sent = request(node.address, "POST /fn/web/", &[("Content-Type", "application/octet-stream")], &binary).json();
    assert_eq!((&sent["base64"], &sent["body"]), (&json!(true), &json!(STANDARD.encode(&binary))));
    let text = request(node.address, "POST /fn/web/", &[("Content-Type", "text/plain")], b"a text").json();
    assert_eq!((&text["base64"], &text["body"]), (&json!(false), &json!("a text")));

    let picture = request(node.address, "GET /fn/web/picture", &[], b"");
    assert_eq!((picture.status, picture.header("content-type"), picture.header("x-own")), (201, "image/x", "yes"));
    assert_eq!(picture.body, binary);
    assert_eq!(picture.header("set-cookie"), "a=1; HttpOnly\nb=2");
    let failed = request(node.address, "GET /fn/web/fail", &[], b"");
    assert_eq!(failed.status, 502);
    assert!(!failed.text().contains("secret"), "{failed:?}");
    node.stop();
}

#[test]
fn a_keyed_function_needs_the_key_and_does_not_get_it() {
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    node.python("keyed", "", WEB);
    let closed = request(node.address, "GET /fn/keyed/", &[], b"");
    let absent = request(node.address, "GET /fn/absent/", &[], b"");
    assert!(matches!(closed.status, 401 | 403), "{closed:?}");
    assert_eq!((closed.status, closed.text()), (absent.status, absent.text()), "nobody learns which functions exist");
    let opened = node.request("GET", "/fn/keyed/", &[], b"");
    assert_eq!((opened.status, &opened.json()["authorization"]), (200, &json!(null)), "{opened:?}");
    node.stop();
}
