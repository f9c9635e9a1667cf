use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, StatusCode};
use model::InstanceId;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::control::tests::World;
use crate::lane::counts::What;
use crate::logs::Appender;

struct Calm;

impl Host for Calm {
    fn report(&self) -> Report {
        Report {
            queues: vec![Queue { name: "demotions", length: 3, limit: 256 }],
            traffic: vec![Traffic { lane: "guaranteed", counts: Counts::default() }],
            usage: vec![Usage { function: "a".to_owned(), busy: 1, idle: 2, used_seconds: 1.5, ..Usage::default() }],
            ..Report::default()
        }
    }
}

struct NewKeys;

impl Keyring for NewKeys {
    fn rotate(&self) -> Pending<Result<Keys, RotationError>> {
        Box::pin(async { Keys::generate().map_err(|source| RotationError::File { source }) })
    }
}

struct Site {
    world: World,
    router: Router,
    appender: Appender,
    data: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let world = World::new().await;
        let (appender, logs, _keeper) = crate::logs::start(crate::logs::Limits::default()).unwrap();
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("data");
        std::fs::create_dir(&folder).unwrap();
        let store = Arc::new(Sqlite::open(&folder.join("store.sqlite3")).unwrap());
        let codes = Codes::open(&world.folder.path().join("code"), Arc::new(crate::control::tests::OneFile)).unwrap();
        let router = router(Parts {
            control: world.control.clone(),
            logs,
            codes,
            host: Arc::new(Calm),
            home: Home::default(),
            url: "http://127.0.0.1:9000".to_owned(),
            data: Some(DataSource { folder, store }),
            keyring: Arc::new(NewKeys),
        });
        Self { world, router, appender, data }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Response {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder().method(method).uri(path).body(body).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn json(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let response = self.ask(method, path, body).await;
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() })
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.json(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    async fn text(&self, path: &str) -> String {
        let response = self.ask(Method::GET, path, None).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        String::from_utf8(axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    async fn deploy(&self, name: &str, rate: &str) -> (u16, Value) {
        let guarantee = if rate.is_empty() {
            String::new()
        } else {
            format!("[guarantee]\nrate = \"{rate}\"\nmax_run_time = \"5ms\"\nlead = \"200ms\"")
        };
        let toml = format!("name = \"{name}\"\nruntime = \"python3.12\"\nhandler = \"main.h\"\n{guarantee}");
        let body = json!({ "takt_toml": toml, "zip": STANDARD.encode("code") });
        self.json(Method::PUT, &format!("/v1/functions/{name}"), Some(body)).await
    }
}

#[tokio::test]
async fn a_function_is_deployed_looked_at_and_deleted() {
    let site = Site::new().await;
    let (status, answer) = site.deploy("a", "20/s").await;
    assert_eq!((status, &answer["version"], &answer["standing"]), (200, &json!(1), &json!("guaranteed")), "{answer}");
    assert_eq!(answer["guarantee"]["rate"], "20/s");
    assert_eq!(answer["instances"], json!({ "busy": 1, "idle": 2 }));
    assert_eq!(site.get("/v1/functions").await["functions"][0]["name"], "a");
    assert_eq!(site.text("/v1/functions/a/code").await, "code");
    let stale = site.json(Method::DELETE, "/v1/functions/a?revision=1000000", None).await;
    assert_eq!((stale.0, &stale.1["error"]["code"]), (412, &json!("revision")));
    assert_eq!(site.json(Method::DELETE, "/v1/functions/a", None).await.0, 204);
    let (status, gone) = site.json(Method::GET, "/v1/functions/a", None).await;
    assert_eq!((status, &gone["error"]["code"]), (404, &json!("no-function")));
}

#[tokio::test]
async fn a_refusal_says_what_binds_and_what_would_fit() {
    let site = Site::new().await;
    let (status, answer) = site.deploy("a", "5000/s").await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("refused")), "{answer}");
    let refusal = &answer["error"]["refusal"];
    assert!(refusal["resource"].is_string(), "{answer}");
    let offer = refusal["offer"].as_str().unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains(offer));
    assert_eq!(site.deploy("a", offer).await.0, 200);
}

#[tokio::test]
async fn a_guarantee_is_tried_given_explained_and_withdrawn() {
    let site = Site::new().await;
    site.deploy("a", "").await;
    let path = "/v1/functions/a/guarantee";
    let (status, none) = site.json(Method::GET, path, None).await;
    assert_eq!((status, &none["error"]["code"]), (404, &json!("no-guarantee")));
    let terms = json!({ "rate": "10/s", "max_run_time": "5ms", "burst": 2 });
    let (status, tried) = site.json(Method::PUT, &format!("{path}?dry_run=true"), Some(terms.clone())).await;
    assert_eq!((status, &tried["terms"]["burst"]), (200, &json!("2")), "{tried}");
    assert_eq!(site.json(Method::GET, path, None).await.0, 404, "a trial changes nothing");
    let (status, given) = site.json(Method::PUT, path, Some(terms)).await;
    assert_eq!((status, &given["warm"], &given["shards"]), (200, &tried["warm"], &tried["shards"]), "{given}");
    let explained = site.get(&format!("{path}/explain")).await;
    assert!(explained["explanation"][0].as_str().unwrap().contains("10/s"), "{explained}");
    let bad = site.json(Method::PUT, path, Some(json!({ "rate": "fast" }))).await;
    assert_eq!((bad.0, &bad.1["error"]["code"]), (400, &json!("terms")), "{}", bad.1);
    assert_eq!(site.json(Method::DELETE, path, None).await.0, 204);
    assert_eq!(site.get("/v1/functions/a").await["standing"], "best-effort");
    let question =
        json!({ "takt_toml": "name = \"x\"\nruntime = \"python\"\n[guarantee]\nrate = \"1/s\"\nmax_run_time = \"5ms\"" });
    assert_eq!(site.json(Method::POST, "/v1/admission", Some(question)).await.0, 200);
}

#[tokio::test]
async fn a_pre_invocation_keeps_to_the_declared_lead() {
    let site = Site::new().await;
    site.deploy("a", "20/s").await;
    let ask = |lead| site.json(Method::POST, "/v1/functions/a/pre-invoke", Some(json!({ "lead": lead })));
    let (status, lease) = ask("100ms").await;
    assert_eq!((status, &lease["lease"], &lease["expires_in"]), (200, &json!(7), &json!("200ms")), "{lease}");
    let (status, refused) = ask("300ms").await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("no-lease")), "{refused}");
}

#[tokio::test]
async fn rate_classes_come_and_go() {
    let site = Site::new().await;
    let put = site.json(Method::PUT, "/v1/rate-classes/vr", Some(json!({ "rate": "9/s" }))).await;
    assert_eq!(put.0, 204, "{}", put.1);
    assert_eq!(site.get("/v1/rate-classes").await, json!({ "vr": { "rate": "9/s", "burst": 1 } }));
    assert_eq!(site.json(Method::DELETE, "/v1/rate-classes/vr", None).await.0, 204);
    assert_eq!(site.json(Method::DELETE, "/v1/rate-classes/vr", None).await.0, 404);
}

#[tokio::test]
async fn logs_are_read_and_followed() {
    let site = Site::new().await;
    site.deploy("a", "").await;
    let name: model::FunctionName = "a".parse().unwrap();
    let print = |text: &str| site.appender.append(name.clone(), InstanceId(4), 5, text.as_bytes());
    print("one");
    let response = site.ask(Method::GET, "/v1/functions/a/logs?follow=true&from=0&format=json", None).await;
    let mut body = response.into_body();
    let mut followed = String::new();
    while followed.lines().count() < 2 {
        let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
        followed.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        if followed.lines().count() == 1 {
            print("two");
        }
    }
    let last: Value = serde_json::from_str(followed.lines().last().unwrap()).unwrap();
    assert_eq!(last, json!({ "number": 1, "at_ms": 5, "instance": "i-4", "text": "two" }));
    assert_eq!(site.text("/v1/functions/a/logs").await, "one\ntwo\n");
    assert_eq!(site.text("/v1/functions/a/logs?lines=1").await, "two\n");
}

#[tokio::test]
async fn the_node_its_metrics_and_its_description_are_there() {
    let site = Site::new().await;
    site.deploy("a", "20/s").await;
    let node = site.get("/v1/node").await;
    assert_eq!((&node["level"], &node["guarantees"], &node["phase"]), (&json!("hard"), &json!(1), &json!("running")));
    let metrics = site.text("/metrics").await;
    for line in [
        "takt_function_standing{function=\"a\",standing=\"guaranteed\"} 1",
        "takt_invocations_total{function=\"a\",generation=\"2\",kind=\"conforming\"} 4",
        "takt_tolerance_seconds 0.002",
        "takt_queue_length{queue=\"demotions\"} 3",
        "takt_connections_total{lane=\"guaranteed\",what=\"moved-over-budget\"} 0",
        "takt_used_instance_seconds_total{function=\"a\"} 1.5",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
    let page = include_str!("../../../../docs/reference/metrics.md");
    for name in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(page.contains(&format!("`{name}`")), "{name} is not in the reference");
    }
    for what in What::ALL.into_iter().filter(|what| *what != What::Request) {
        assert!(page.contains(&format!("| `{}` |", what.name())), "{what:?} is not in the reference");
    }
    let description = site.get("/v1/openapi.json").await;
    assert!(description["components"]["schemas"]["GuaranteeAnswer"].is_object());
}

#[tokio::test]
async fn every_path_and_method_is_described_and_no_other() {
    let site = Site::new().await;
    let paths = site.get("/v1/openapi.json").await["paths"].take();
    let methods = |value: &Value| value.as_object().unwrap().keys().map(|name| name.to_uppercase()).collect();
    let mut described: BTreeMap<String, BTreeSet<String>> =
        paths.as_object().unwrap().iter().map(|(path, value)| (path.clone(), methods(value))).collect();
    assert_eq!(described.remove(openapi::LEASE), Some(BTreeSet::from(["POST".to_owned()])), "the lane serves it");
    let mut served = BTreeMap::new();
    for (path, _) in routes() {
        // Whoever asks with a method that a path has not is told those it has.
        let answer = site.ask(Method::PATCH, &path.replace("{name}", "a"), None).await;
        let allowed = answer.headers()[http::header::ALLOW].to_str().unwrap().split(',').map(str::to_owned);
        served.insert(path.to_owned(), allowed.filter(|method| method != "HEAD").collect());
    }
    assert_eq!(described, served);
}

#[tokio::test]
async fn what_is_asked_wrongly_is_told_why() {
    let site = Site::new().await;
    let check = async |method: Method, path: &str, body: Option<Value>, status: u16, code: &str| {
        let (found, answer) = site.json(method, path, body).await;
        assert_eq!((found, answer["error"]["code"].as_str()), (status, Some(code)), "{path}: {answer}");
    };
    check(Method::GET, "/v1/functions/a%20b", None, 400, "body").await;
    check(Method::PUT, "/v1/functions/a", Some(json!({ "zip": "!" })), 400, "body").await;
    check(Method::PUT, "/v1/functions/a", Some(json!({ "surprise": 1 })), 400, "body").await;
    check(Method::PATCH, "/v1/functions/a", None, 405, "not-allowed").await;
    check(Method::GET, "/elsewhere", None, 404, "no-path").await;
    let other = json!({ "takt_toml": "name = \"b\"\nruntime = \"python\"" });
    check(Method::PUT, "/v1/functions/a", Some(other), 400, "body").await;
    let codeless = json!({ "takt_toml": "name = \"a\"\nruntime = \"python\"" });
    check(Method::PUT, "/v1/functions/a", Some(codeless), 400, "no-code").await;
    let large = json!({ "rate": "x".repeat(MAX_REQUEST_BYTES) });
    check(Method::PUT, "/v1/functions/a/guarantee", Some(large), 413, "too-large").await;
    check(Method::POST, "/v1/backup", Some(json!({ "to": "here" })), 409, "backup").await;
}

#[tokio::test]
async fn a_backup_is_made_while_the_node_runs() {
    let site = Site::new().await;
    site.deploy("a", "").await;
    let to = site.data.path().join("backup");
    let (status, made) = site.json(Method::POST, "/v1/backup", Some(json!({ "to": to }))).await;
    assert_eq!((status, &made["format"]), (200, &json!(Sqlite::FORMAT)), "{made}");
    assert!(crate::backup::inspect(&to).is_ok_and(|manifest| 0 < manifest.files));
}

const AWS: &str = "/2015-03-31/functions";

fn create_body(rate: &str) -> Value {
    json!({
        "FunctionName": "a", "Runtime": "python3.12", "Handler": "main.h", "Role": "arn:aws:iam::000000000000:role/r",
        "Code": { "ZipFile": STANDARD.encode("code") }, "Tags": { "takt:rate": rate, "takt:max_run_time": "5ms", "team": "blue" },
    })
}

#[tokio::test]
async fn aws_clients_create_wait_update_and_delete() {
    let site = Site::new().await;
    let (status, created) = site.json(Method::POST, AWS, Some(create_body("20/s"))).await;
    assert_eq!((status, &created["State"]), (201, &json!("Pending")), "{created}");
    let again = site.json(Method::POST, AWS, Some(create_body("20/s"))).await;
    assert_eq!(again.0, 409, "{}", again.1);
    let found = loop {
        let found = site.get(&format!("{AWS}/a")).await;
        if found["Configuration"]["State"] == "Active" {
            break found;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(found["Code"]["Location"], "http://127.0.0.1:9000/v1/functions/a/code");
    assert_eq!(found["Tags"]["takt:rate"], "20/s");
    let code = json!({ "ZipFile": STANDARD.encode("new code") });
    let (status, updated) = site.json(Method::PUT, &format!("{AWS}/a/code"), Some(code)).await;
    assert_eq!((status, &updated["LastUpdateStatus"]), (200, &json!("InProgress")), "{updated}");
    while site.get(&format!("{AWS}/a/configuration")).await["LastUpdateStatus"] != "Successful" {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.get("/v1/functions/a").await["version"], 2);
    assert_eq!(site.get(AWS).await["Functions"][0]["FunctionName"], "a");
    assert_eq!(site.json(Method::DELETE, &format!("{AWS}/a"), None).await.0, 204);
    let (status, gone) = site.json(Method::GET, &format!("{AWS}/a"), None).await;
    assert_eq!((status, &gone["Message"]), (404, &json!("Function not found: arn:aws:lambda:us-east-1:000000000000:function:a")));
}

#[tokio::test]
async fn a_guarantee_comes_and_goes_through_tags_alone() {
    let site = Site::new().await;
    site.deploy("a", "").await;
    let tags = "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Aa";
    let given = json!({ "Tags": { "takt:rate": "10/s", "takt:max_run_time": "5ms" } });
    assert_eq!(site.json(Method::POST, tags, Some(given)).await.0, 204);
    assert_eq!(site.get("/v1/functions/a").await["standing"], "guaranteed");
    assert_eq!(site.get(tags).await["Tags"]["takt:rate"], "10/s");
    let (status, refused) = site.json(Method::POST, tags, Some(json!({ "Tags": { "takt:rate": "9000/s" } }))).await;
    assert_eq!(status, 400, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("largest rate that fits"), "{refused}");
    assert_eq!(site.get(tags).await["Tags"]["takt:rate"], "10/s");
    let gone = format!("{tags}?tagKeys=takt%3Arate&tagKeys=takt%3Amax_run_time");
    assert_eq!(site.json(Method::DELETE, &gone, None).await.0, 204);
    assert_eq!(site.get("/v1/functions/a").await["standing"], "best-effort");
}

#[tokio::test]
async fn an_operation_this_node_lacks_is_named() {
    let site = Site::new().await;
    let (status, answer) = site.json(Method::POST, &format!("{AWS}/a/versions"), Some(json!({}))).await;
    assert_eq!(status, 501);
    assert!(answer["message"].as_str().unwrap().contains("PublishVersion"), "{answer}");
    site.world.control.shutdown();
}
