//! Signatures made by an independent signer, by the real botocore, and by nobody.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use proptest::prelude::*;

use super::*;
use crate::auth::keys::Secret;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const NOW: &str = "20261124T061657Z";
const ARN_PATH: &str = "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aeu-west-1%3A000000000000%3Afunction%3Ahello";

fn keys() -> Keys {
    let secret_access_key = Secret::new(SECRET.to_owned());
    Keys { access_key_id: "AKIDEXAMPLE".to_owned(), secret_access_key, token: Secret::new("t".repeat(40)) }
}

fn at(text: &str) -> SystemTime {
    parse_date(text).unwrap().into()
}

fn verify(parts: &Parts, body: &[u8], now: SystemTime) -> Result<(), Error> {
    Verifier::new(&keys()).begin(parts, now)?.finish(PayloadHash::of(body))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = keyed(key);
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A second signer, written from AWS's description with strings, for requests whose parts are in canonical form already.
fn sign(request: Request<Vec<u8>>, region: &str) -> (Parts, Vec<u8>) {
    let (mut parts, body) = request.into_parts();
    parts.headers.insert("x-amz-date", NOW.parse().unwrap());
    let mut names: Vec<String> = parts.headers.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort();
    let line = |name: &String| format!("{name}:{}\n", parts.headers[name.as_str()].to_str().unwrap().trim());
    let header_lines: String = names.iter().map(line).collect();
    let path: String = parts.uri.path().replace('%', "%25");
    let mut pairs: Vec<&str> = parts.uri.query().unwrap_or("").split('&').collect();
    pairs.sort_unstable();
    let (signed, payload) = (names.join(";"), hex_text(&Sha256::digest(&body)));
    let canonical = format!("{}\n{path}\n{}\n{header_lines}\n{signed}\n{payload}", parts.method, pairs.join("&"));
    let scope = format!("{}/{region}/lambda/aws4_request", &NOW[..8]);
    let to_sign = format!("AWS4-HMAC-SHA256\n{NOW}\n{scope}\n{}", hex_text(&Sha256::digest(canonical.as_bytes())));
    let mut key = mac(format!("AWS4{SECRET}").as_bytes(), &NOW[..8]);
    for part in [region, "lambda", "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex_text(&mac(&key, &to_sign));
    let value = format!("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{scope}, SignedHeaders={signed}, Signature={signature}");
    parts.headers.insert(AUTHORIZATION, value.parse().unwrap());
    (parts, body)
}

fn signed_example() -> (Parts, Vec<u8>) {
    let request = Request::post(format!("{ARN_PATH}?tagKeys=a&tagKeys=b%20c"))
        .header("host", "127.0.0.1:9000")
        .header("x-amz-log-type", "Tail")
        .body(b"{}".to_vec());
    sign(request.unwrap(), "eu-west-1")
}

#[test]
fn a_signature_recorded_from_botocore_is_accepted() {
    let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261124/eu-west-1/lambda/aws4_request, \
                         SignedHeaders=host;x-amz-date;x-amz-log-type, \
                         Signature=3765ba4d8e65929ac95b130479da1508356629079431684d813cc5c37ea0a207";
    let path = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aeu-west-1%3A000000000000%3Afunction%3Ahello%3A%24LATEST/invocations";
    let request = Request::post(path)
        .header("host", "127.0.0.1:9000")
        .header("x-amz-log-type", "Tail")
        .header("x-amz-date", NOW)
        .header("authorization", authorization);
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let keys = Keys { secret_access_key: Secret::new("secret".to_owned()), ..keys() };
    let unproven = Verifier::new(&keys).begin(&parts, at(NOW)).unwrap();
    assert_eq!(unproven.finish(PayloadHash::of(b"{\"a\":1}")), Ok(()));
    let unproven = Verifier::new(&keys).begin(&parts, at(NOW)).unwrap();
    assert_eq!(unproven.finish(PayloadHash::of(b"{\"a\":2}")), Err(Error::Mismatch));
}

#[test]
fn whatever_is_changed_breaks_the_signature() {
    let (parts, body) = signed_example();
    assert_eq!(verify(&parts, &body, at(NOW)), Ok(()));
    assert_eq!(verify(&parts, b"{ }", at(NOW)), Err(Error::Mismatch));

    let change = |change: &dyn Fn(&mut Parts)| {
        let mut changed = parts.clone();
        change(&mut changed);
        verify(&changed, &body, at(NOW))
    };
    assert_eq!(change(&|parts| parts.method = http::Method::DELETE), Err(Error::Mismatch));
    assert_eq!(change(&|parts| parts.uri = ARN_PATH.parse().unwrap()), Err(Error::Mismatch));
    assert_eq!(
        change(&|parts| parts.uri = "/2017-03-31/tags/other?tagKeys=a&tagKeys=b%20c".parse().unwrap()),
        Err(Error::Mismatch)
    );
    for name in ["host", "x-amz-log-type"] {
        assert_eq!(change(&|parts| drop(parts.headers.insert(name, "None".parse().unwrap()))), Err(Error::Mismatch), "{name}");
        assert_eq!(change(&|parts| assert!(parts.headers.append(name, "x".parse().unwrap()))), Err(Error::Mismatch), "{name}");
    }
    let unsigned = change(&|parts| drop(parts.headers.insert("x-amz-invocation-type", "DryRun".parse().unwrap())));
    assert_eq!(unsigned, Err(Error::Unsigned { header: "x-amz-invocation-type".to_owned() }));
    let token = change(&|parts| drop(parts.headers.insert("x-amz-security-token", "x".parse().unwrap())));
    assert_eq!(token, Err(Error::Unsigned { header: "x-amz-security-token".to_owned() }));
}

#[test]
fn the_order_and_encoding_of_the_query_do_not_matter() {
    let (mut parts, body) = signed_example();
    parts.uri = format!("{ARN_PATH}?tagKeys=b%20c&tagKeys=%61").parse().unwrap();
    assert_eq!(verify(&parts, &body, at(NOW)), Ok(()));
}

#[test]
fn each_fault_has_its_aws_name() {
    let (parts, body) = signed_example();
    let good = parts.headers[AUTHORIZATION].to_str().unwrap().to_owned();
    let check = |from: &str, to: &str, code: &str| {
        let mut parts = parts.clone();
        parts.headers.insert(AUTHORIZATION, good.replace(from, to).parse().unwrap());
        assert_eq!(verify(&parts, &body, at(NOW)).unwrap_err().code(), code, "{to}");
    };
    check("AKIDEXAMPLE", "AKIDOTHER", "UnrecognizedClientException");
    check("/lambda/", "/s3/", "InvalidSignatureException");
    check("aws4_request", "aws5_request", "InvalidSignatureException");
    check("/20261124/", "/20261123/", "InvalidSignatureException");
    check("/eu-west-1/", "/us-east-1/", "InvalidSignatureException");
    check("Signature=", "Signature=0", "InvalidSignatureException");
    check("host;", "", "InvalidSignatureException");
    check("Credential=", "", "IncompleteSignatureException");
    check("SignedHeaders=", "", "IncompleteSignatureException");
    check("Signature=", "", "IncompleteSignatureException");
    check("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", "IncompleteSignatureException");
    check("/eu-west-1/", "/", "IncompleteSignatureException");
    check("/eu-west-1/", &format!("/{}/", "r".repeat(33)), "IncompleteSignatureException");

    let mut without = parts.clone();
    without.headers.remove("x-amz-date");
    assert_eq!(verify(&without, &body, at(NOW)).unwrap_err().code(), "IncompleteSignatureException");
    without.headers.remove(AUTHORIZATION);
    assert_eq!(verify(&without, &body, at(NOW)).unwrap_err().code(), "MissingAuthenticationTokenException");
    let mut unsigned = parts.clone();
    unsigned.headers.insert("x-amz-content-sha256", "UNSIGNED-PAYLOAD".parse().unwrap());
    assert_eq!(verify(&unsigned, &body, at(NOW)), Err(Error::UnsignedPayload));
}

#[test]
fn a_signature_holds_for_fifteen_minutes_either_way() {
    let (parts, body) = signed_example();
    for seconds in [0, 900] {
        assert_eq!(verify(&parts, &body, at(NOW) + Duration::from_secs(seconds)), Ok(()));
        assert_eq!(verify(&parts, &body, at(NOW) - Duration::from_secs(seconds)), Ok(()));
    }
    assert!(matches!(verify(&parts, &body, at(NOW) + Duration::from_secs(901)), Err(Error::Expired { .. })));
    assert!(matches!(verify(&parts, &body, at(NOW) - Duration::from_secs(901)), Err(Error::NotYetCurrent { .. })));
}

#[test]
fn more_than_the_limits_is_refused_before_it_is_sorted() {
    let pairs = |count: usize| (0..count).map(|n| format!("k{n:03}=1")).collect::<Vec<_>>().join("&");
    let request = |count| Request::get(format!("/?{}", pairs(count))).header("host", "localhost").body(Vec::new()).unwrap();
    let (parts, body) = sign(request(MAX_QUERY_PAIRS), "eu-west-1");
    assert_eq!(verify(&parts, &body, at(NOW)), Ok(()));
    let (parts, body) = sign(request(MAX_QUERY_PAIRS + 1), "eu-west-1");
    assert!(matches!(verify(&parts, &body, at(NOW)), Err(Error::Limit { limit: MAX_QUERY_PAIRS, .. })));
}

#[test]
fn signing_keys_of_many_regions_replace_each_other_without_harm() {
    let mut verifier = Verifier::new(&keys());
    for region in ["a", "b", "c", "d", "e", "a", "f", "", "a"] {
        let request = Request::get("/x").header("host", "localhost").body(Vec::new()).unwrap();
        let (parts, body) = sign(request, region);
        let unproven = verifier.begin(&parts, at(NOW)).unwrap();
        assert_eq!(unproven.finish(PayloadHash::of(&body)), Ok(()), "{region}");
    }
}

/// Signs requests with the installed botocore: every operation of the service model that its serializer takes with plain
/// values, the JavaScript SDK's set of headers, and presigned URLs. One JSON line each.
const BOTOCORE: &str = r#"
import base64, json, sys
try:
    import botocore.session, botocore.auth, botocore.awsrequest, botocore.credentials
except ImportError as error:
    print("SKIP", error); sys.exit(0)
KEY, SECRET = sys.argv[1], sys.argv[2]
ARN = "arn:aws:lambda:eu-west-1:000000000000:function:hello"
credentials = botocore.credentials.Credentials(KEY, SECRET)
session = botocore.session.Session()
session.set_credentials(KEY, SECRET)
def show(name, method, url, headers, body):
    body = b"" if body is None else body.encode() if isinstance(body, str) else bytes(body)
    text = {k: v.decode() if isinstance(v, bytes) else v for k, v in dict(headers).items()}
    print(json.dumps({"name": name, "method": method, "url": url, "headers": text, "body": base64.b64encode(body).decode()}))
class Answer:
    def stream(self, **kw): return iter([b"{}"])
    def read(self, *a): return b"{}"
def capture(request, event_name="", **kw):
    show(event_name, request.method, request.url, request.headers, request.body)
    return botocore.awsrequest.AWSResponse(request.url, 200, {}, Answer())
for token in (None, "session/token+x=="):
    session.set_credentials(KEY, SECRET, token)
    client = session.create_client("lambda", region_name="eu-west-1", endpoint_url="http://127.0.0.1:9000")
    client.meta.events.register("before-send.lambda.*", capture)
    for name in ("hello", "hello:$LATEST", ARN, ARN + ":$LATEST"):
        client.invoke(FunctionName=name, Payload=b'{"a": 1}', LogType="Tail", InvocationType="RequestResponse", ClientContext="e30=")
    client.invoke(FunctionName="hello", Qualifier="$LATEST", InvocationType="DryRun")
    client.create_function(FunctionName="hello", Role="arn:aws:iam::000000000000:role/x", Runtime="python3.12", Handler="m.f",
        Code={"ZipFile": b"PK\x05\x06" + bytes(18)}, Tags={"takt:rate": "30/s", "a b": "\u00e4"})
    client.update_function_code(FunctionName=ARN, ZipFile=b"PK")
    client.update_function_configuration(FunctionName="hello", Timeout=7)
    for name in ("hello", ARN):
        client.get_function(FunctionName=name)
        client.get_function_configuration(FunctionName=name, Qualifier="$LATEST")
        client.list_versions_by_function(FunctionName=name)
        client.get_function_code_signing_config(FunctionName=name)
        client.get_function_concurrency(FunctionName=name)
        client.delete_function(FunctionName=name)
    client.list_functions(MaxItems=3, Marker="a/b+c==~ *'()!")
    client.list_tags(Resource=ARN)
    client.tag_resource(Resource=ARN, Tags={"takt:rate": "5/min", "takt:burst": "5"})
    client.untag_resource(Resource=ARN, TagKeys=["takt:rate", "a b&c=d", "\u00e4", "Z", "a"])
    client.get_account_settings()
import hashlib
for body in (b"", b'{"a": 1}'):
    request = botocore.awsrequest.AWSRequest("POST", "http://localhost:9000/2015-03-31/functions/hello/invocations", data=body, headers={
        "amz-sdk-invocation-id": "d365d687-6bf3-4a27-bcc3-511d9db0ff12", "amz-sdk-request": "attempt=1; max=3", "host": "localhost:9000",
        "content-length": str(len(body)), "content-type": "application/octet-stream", "x-amz-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-amz-invocation-type": "RequestResponse", "x-amz-user-agent": "aws-sdk-js/3.400.0  ua/2.0"})
    botocore.auth.SigV4Auth(credentials, "lambda", "us-east-1").add_auth(request)
    show("js", "POST", request.url, request.headers, body)
for path in ("/2015-03-31/functions/hello/invocations", "/2015-03-31/functions/" + ARN.replace(":", "%3A") + "/invocations?Qualifier=%24LATEST"):
    request = botocore.awsrequest.AWSRequest("POST", "http://localhost:9000" + path)
    botocore.auth.SigV4QueryAuth(botocore.credentials.Credentials(KEY, SECRET, "tok/en+"), "lambda", "us-east-1", expires=60).add_auth(request)
    show("presigned", "POST", request.url, {"host": "localhost:9000"}, b"")
"#;

fn from_json(line: &str) -> (String, Parts, Vec<u8>) {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    let url: http::Uri = value["url"].as_str().unwrap().parse().unwrap();
    let target = url.path_and_query().unwrap().as_str();
    let mut request = Request::builder().method(value["method"].as_str().unwrap()).uri(target);
    let headers = value["headers"].as_object().unwrap();
    for (name, text) in headers {
        request = request.header(name.as_str(), text.as_str().unwrap());
    }
    if !headers.keys().any(|name| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", url.authority().unwrap().as_str());
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    (value["name"].as_str().unwrap().to_owned(), parts, STANDARD.decode(value["body"].as_str().unwrap()).unwrap())
}

/// Requests signed by `@aws-sdk/client-lambda` 3.1164.0, recorded at its request handler (user agents left out).
const JS: &str = include_str!("js.jsonl");

#[test]
fn what_the_javascript_sdk_signed_is_accepted() {
    for line in JS.lines() {
        let (_, parts, body) = from_json(line);
        let now = at(parts.headers["x-amz-date"].to_str().unwrap());
        assert!(parts.headers[AUTHORIZATION].to_str().unwrap().contains("x-amz-content-sha256"), "{}", parts.uri);
        assert_eq!(verify(&parts, &body, now), Ok(()), "{}", parts.uri);
        assert_eq!(verify(&parts, b"another body", now), Err(Error::Mismatch), "{}", parts.uri);
    }
    assert_eq!(JS.lines().count(), 9);
}

#[test]
fn what_the_installed_botocore_signs_is_accepted() {
    let run = Command::new("python3").args(["-c", BOTOCORE, "AKIDEXAMPLE", SECRET]).output();
    let Ok(output) = run else {
        println!("skipped: there is no python3 to sign requests with");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    if text.starts_with("SKIP") {
        println!("skipped: python3 has no botocore to sign requests with ({})", text.trim());
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut checked = 0;
    for line in text.lines() {
        let (name, parts, body) = from_json(line);
        let signed_at = parts.headers.get("x-amz-date").map(|value| value.to_str().unwrap().to_owned());
        let from_query = || query_pairs(parts.uri.query().unwrap()).find(|(name, _)| *name == "X-Amz-Date").unwrap().1.to_owned();
        let now = at(&signed_at.unwrap_or_else(from_query));
        assert_eq!(verify(&parts, &body, now), Ok(()), "{name} {}", parts.uri);
        assert!(verify(&parts, b"another body", now).is_err(), "{name}");
        if name == "presigned" {
            assert_eq!(verify(&parts, &body, now + Duration::from_secs(60)), Ok(()));
            assert!(matches!(verify(&parts, &body, now + Duration::from_secs(61)), Err(Error::Expired { .. })));
        }
        checked += 1;
    }
    assert!(50 <= checked, "{checked} signed requests");
}

proptest! {
    #[test]
    fn an_independent_signer_agrees(path in "(/[a-zA-Z0-9._~-]{1,8}){1,4}", value in "[a-zA-Z0-9._~-]{0,20}", body: Vec<u8>, region in "[a-z0-9-]{1,32}") {
        let request = Request::post(format!("{path}?b={value}&a={value}")).header("host", "localhost").body(body).unwrap();
        let (parts, body) = sign(request, &region);
        prop_assert_eq!(verify(&parts, &body, at(NOW)), Ok(()));
    }

    #[test]
    fn no_authorization_makes_the_verifier_panic_or_agree(text in "[ -~]{0,200}", query in "[!$-;=?-Z_a-z~]{0,100}") {
        for authorization in [text.clone(), format!("AWS4-HMAC-SHA256 {text}"), format!("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261124/r/lambda/aws4_request, SignedHeaders=host;{text}, Signature={}", "0".repeat(64))] {
            let request = Request::get(format!("/x?{query}")).header("host", "localhost").header("x-amz-date", NOW).header("authorization", authorization);
            let (parts, ()) = request.body(()).unwrap().into_parts();
            verify(&parts, b"", at(NOW)).unwrap_err();
        }
    }

    #[test]
    fn no_presigned_query_makes_the_verifier_panic_or_agree(query in "(X-Amz-(Algorithm|Credential|Date|Expires|SignedHeaders|Signature)=[A-Za-z0-9%/;-]{0,20}&){0,8}") {
        let (parts, ()) = Request::get(format!("/x?{query}")).header("host", "localhost").body(()).unwrap().into_parts();
        verify(&parts, b"", at(NOW)).unwrap_err();
    }
}
