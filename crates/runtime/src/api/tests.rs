use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const WIRE: ConnectionId = ConnectionId(1);

fn id(number: u128) -> InvocationId {
    InvocationId::from_random(number)
}

fn invocation(number: u128) -> Invocation {
    Invocation {
        id: id(number),
        deadline_epoch_ms: 1_700_000_000_123,
        function_arn: HeaderValue::from_static("arn:aws:lambda:us-east-1:000000000000:function:f"),
        trace_id: None,
        client_context: None,
        cognito_identity: None,
        tenant_id: None,
        content_type: None,
        payload: Bytes::from_static(b"{}"),
    }
}

fn parts(method: &str, path: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(format!("/2018-06-01{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn ask(session: &mut Session, wire: ConnectionId) -> Outcome {
    session.request(wire, &parts("GET", "/runtime/invocation/next", &[]), Content::whole(""))
}

fn answer(session: &mut Session, number: u128, how: &str, fields: &[(&str, &str)], body: Content) -> Outcome {
    session.request(WIRE, &parts("POST", &format!("/runtime/invocation/{}/{how}", id(number)), fields), body)
}

fn running(number: u128) -> Session {
    let mut session = Session::new();
    ask(&mut session, WIRE);
    session.deliver(invocation(number)).unwrap();
    session
}

/// Status and `errorType` of a reply.
fn told(outcome: &Outcome) -> (u16, String) {
    let Reply::Now(response) = &outcome.reply else { return (0, String::new()) };
    let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap_or_default();
    (response.status().as_u16(), body["errorType"].as_str().unwrap_or_default().to_owned())
}

fn result(outcome: Outcome) -> Result<Value, Failure> {
    let Some(Event::Ended(ended)) = outcome.event else { panic!("not an end: {outcome:?}") };
    ended.result
}

#[test]
fn an_invocation_goes_to_the_connection_that_waits_and_its_result_comes_back() {
    let mut session = Session::new();
    let outcome = session.request(WIRE, &parts("GET", "/runtime/invocation/next", &[("takt-init-ns", "5")]), Content::whole(""));
    assert!(matches!(outcome.reply, Reply::Held));
    assert_eq!(outcome.event, Some(Event::Ready { init: Some(Duration::from_nanos(5)) }));
    let told = Invocation {
        client_context: Some(HeaderValue::from_static("{}")),
        trace_id: Some(HeaderValue::from_static("")),
        ..invocation(7)
    };
    let Delivery::Now(WIRE, response) = session.deliver(told).unwrap() else { panic!("nobody waits") };
    let mut names: Vec<_> =
        response.headers().iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    names.sort();
    let expected = [
        "content-type=application/json",
        &format!("lambda-runtime-aws-request-id={}", id(7)),
        "lambda-runtime-client-context={}",
        "lambda-runtime-deadline-ms=1700000000123",
        "lambda-runtime-invocation-id=1",
        "lambda-runtime-invoked-function-arn=arn:aws:lambda:us-east-1:000000000000:function:f",
    ];
    assert_eq!(names, expected);
    let fields =
        [("takt-started-ns", "123"), ("takt-ended-ns", "456"), ("content-type", "text/x"), ("lambda-runtime-invocation-id", "1")];
    let outcome = answer(&mut session, 7, "response", &fields, Content::whole("ok"));
    let value = Value { payload: "ok".into(), content_type: Some(HeaderValue::from_static("text/x")), mode: ResponseMode::Whole };
    let ended = Ended { id: id(7), started: Some(Time::from_nanos(123)), ended: Some(Time::from_nanos(456)), result: Ok(value) };
    assert_eq!(outcome.event, Some(Event::Ended(ended)));
    assert!(matches!(ask(&mut session, WIRE).event, Some(Event::Ready { init: None })));
}

#[test]
fn an_answer_counts_once_and_only_for_its_own_delivery() {
    let mut session = running(1);
    let invalid = (400, "InvalidRequestID".to_owned());
    let wrong_order = (403, "InvalidStateTransition".to_owned());
    assert_eq!(told(&answer(&mut session, 2, "response", &[], Content::whole("x"))), invalid);
    let late = [("lambda-runtime-invocation-id", "9")];
    assert_eq!(told(&answer(&mut session, 1, "response", &late, Content::whole("x"))), invalid);
    assert_eq!(told(&answer(&mut session, 1, "error", &late, Content::whole("x"))), invalid);
    assert_eq!(told(&ask(&mut session, WIRE)), wrong_order);
    result(answer(&mut session, 1, "response", &[], Content::whole("x"))).unwrap();
    for how in ["response", "error"] {
        let again = answer(&mut session, 1, how, &[], Content::whole("x"));
        assert_eq!((told(&again), again.event), (wrong_order.clone(), None));
    }
    ask(&mut session, WIRE);
    assert_eq!(told(&answer(&mut session, 1, "response", &[], Content::whole("x"))), wrong_order);
    let never = answer(&mut Session::new(), 1, "response", &[], Content::whole("x"));
    assert_eq!(told(&never), invalid);
}

#[test]
fn only_an_instance_that_asked_gets_an_invocation() {
    let mut session = Session::new();
    assert_eq!(session.deliver(invocation(1)).unwrap_err().invocation.id, id(1));
    session = running(1);
    session.deliver(invocation(2)).unwrap_err();
}

#[test]
fn a_waiting_connection_that_is_replaced_or_lost_costs_no_invocation() {
    let mut session = Session::new();
    ask(&mut session, WIRE);
    let outcome = ask(&mut session, ConnectionId(2));
    assert!(matches!(outcome.reply, Reply::HeldInsteadOf(WIRE)));
    assert_eq!(outcome.event, None);
    session.closed(WIRE);
    assert!(matches!(session.deliver(invocation(1)), Ok(Delivery::Now(ConnectionId(2), _))));

    let mut session = Session::new();
    ask(&mut session, WIRE);
    session.closed(WIRE);
    assert!(matches!(session.deliver(invocation(1)), Ok(Delivery::WhenAsked)));
    let outcome = ask(&mut session, ConnectionId(2));
    assert_eq!(outcome.event, Some(Event::Taken { id: id(1) }));
    result(answer(&mut session, 1, "response", &[], Content::whole("x"))).unwrap();
}

#[test]
fn a_failed_start_ends_the_session() {
    let mut session = Session::new();
    let fields = [("lambda-runtime-function-error-type", "Runtime.ImportModuleError")];
    let outcome = session.request(WIRE, &parts("POST", "/runtime/init/error", &fields), Content::whole("{}"));
    let failure = Failure { body: "{}".into(), error_type: "Runtime.ImportModuleError".to_owned() };
    assert_eq!(outcome.event, Some(Event::InitFailed(failure)));
    assert_eq!(told(&outcome).0, 202);
    assert_eq!(told(&ask(&mut session, WIRE)).0, 403);
    let mut session = running(1);
    assert_eq!(told(&session.request(WIRE, &parts("POST", "/runtime/init/error", &[]), Content::whole(""))).0, 403);
}

#[test]
fn the_error_type_is_the_headers_the_bodys_or_unknown() {
    for (header, body, expected) in [
        ("Runtime.ExitError", "{\"errorType\":\"ValueError\"}", "Runtime.ExitError"),
        ("unhandled", "{\"errorType\":\"ValueError\"}", "ValueError"),
        ("Runtime.lower", "{\"errorType\":\"\"}", "Function.Unknown"),
        ("Function.A b", "not json", "Function.Unknown"),
    ] {
        let fields = [("lambda-runtime-function-error-type", header)];
        let outcome = answer(&mut running(1), 1, "error", &fields, Content::whole(body));
        let failure = Failure { body: body.into(), error_type: expected.to_owned() };
        assert_eq!(result(outcome), Err(failure), "{header} {body}");
    }
}

#[test]
fn a_result_over_the_limit_is_a_function_error() {
    let mut session = running(1);
    let outcome = answer(&mut session, 1, "response", &[], Content::TooLong);
    assert_eq!(told(&outcome), (413, "RequestEntityTooLarge".to_owned()));
    assert_eq!(result(outcome).unwrap_err().error_type, "Function.ResponseSizeTooLarge");
    assert!(matches!(ask(&mut session, WIRE).event, Some(Event::Ready { .. })));
    assert_eq!(body_limit(&parts("POST", "/runtime/invocation/x/response", &[])), MAX_RESPONSE_BYTES);
}

#[test]
fn a_stream_that_broke_off_is_an_error_however_it_is_told() {
    let streaming = [("lambda-runtime-function-response-mode", "streaming")];
    let report = json!({ "errorType": "E", "errorMessage": "m" }).to_string();
    let failure = Failure { body: report.clone().into(), error_type: "Runtime.StreamError".to_owned() };
    let encoded = STANDARD.encode(&report);

    let mut trailers = HeaderMap::new();
    trailers.insert("lambda-runtime-function-error-type", HeaderValue::from_static("Runtime.StreamError"));
    trailers.insert("lambda-runtime-function-error-body", encoded.parse().unwrap());
    let told = answer(&mut running(1), 1, "response", &streaming, Content::Whole("part".into(), trailers));
    assert_eq!(result(told), Err(failure.clone()));

    let text = format!(
        "partLambda-Runtime-Function-Error-Type: Runtime.StreamError\r\nLambda-Runtime-Function-Error-Body: {encoded}\r\n"
    );
    let written = answer(&mut running(1), 1, "response", &streaming, Content::whole(text.clone()));
    assert_eq!(result(written), Err(failure));
    let value = result(answer(&mut running(1), 1, "response", &[], Content::whole(text.clone()))).unwrap();
    assert_eq!((value.payload, value.mode), (text.into(), ResponseMode::Whole));

    let unknown = [("lambda-runtime-function-response-mode", "dripping")];
    let mut session = running(1);
    assert_eq!(self::told(&answer(&mut session, 1, "response", &unknown, Content::whole(""))).0, 400);
    result(answer(&mut session, 1, "response", &[], Content::whole(""))).unwrap();
}

#[test]
fn what_is_not_served_here_is_answered_as_the_emulator_does() {
    for (method, path, status, error_type) in [
        ("GET", "/2018-06-01/ping", 200, ""),
        ("GET", "/ping", 200, ""),
        ("GET", "/2018-06-01/runtime/restore/next", 404, ""),
        ("POST", "/2018-06-01/runtime/restore/error", 404, ""),
        ("GET", "/2021-04-23/credentials", 404, ""),
        ("POST", "/2020-01-01/extension/register", 403, "Extension.RegistrationClosed"),
        ("GET", "/2020-01-01/extension/event/next", 403, "Extension.UnknownExtensionIdentifier"),
        ("PUT", "/2020-08-15/logs", 202, "Telemetry.NotSupported"),
        ("PUT", "/2022-07-01/telemetry", 202, "Telemetry.NotSupported"),
        ("POST", "/2018-06-01/runtime/invocation/next", 405, ""),
        ("GET", "/2018-06-01/runtime/invocation/x/response", 405, ""),
        ("GET", "/", 404, ""),
    ] {
        let parts = Request::builder().method(method).uri(path).body(()).unwrap().into_parts().0;
        let outcome = Session::new().request(WIRE, &parts, Content::whole(""));
        assert_eq!(told(&outcome), (status, error_type.to_owned()), "{method} {path}");
        assert_eq!(outcome.event, None);
    }
}

#[test]
fn a_client_context_becomes_one_line_of_ascii() {
    let context = client_context(&STANDARD.encode("{\n\t\"a\": \"ä\u{1f600}\"}")).unwrap();
    assert_eq!(context, "{  \"a\": \"\\u00e4\\ud83d\\ude00\"}");
    for text in ["", "%", &STANDARD.encode("[1]"), &STANDARD.encode("{"), &STANDARD.encode([0xff])] {
        assert_eq!(client_context(text), Err(ContextError::NotAnObject), "{text}");
    }
    assert_eq!(client_context(&"A".repeat(3584)), Err(ContextError::TooLong { bytes: 3584 }));
}

#[test]
fn requests_that_lead_nowhere_are_counted_until_one_leads_somewhere() {
    let mut session = Session::new();
    for count in 1..=3 {
        session.request(WIRE, &parts("GET", "/ping", &[]), Content::whole(""));
        assert_eq!(session.aside(), count);
    }
    ask(&mut session, WIRE);
    assert_eq!(session.aside(), 0);
    session.deliver(invocation(1)).unwrap();
    answer(&mut session, 2, "response", &[], Content::whole(""));
    assert_eq!(session.aside(), 1);
}

#[derive(Clone, Debug)]
enum Move {
    Next(u64),
    Answer { number: u128, how: &'static str, attempt: Option<u64> },
    InitError,
    Deliver,
    Closed(u64),
}

fn a_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        (0..3_u64).prop_map(Move::Next),
        (0..4_u128, prop::sample::select(vec!["response", "error"]), prop::option::of(0..4_u64))
            .prop_map(|(number, how, attempt)| Move::Answer { number, how, attempt }),
        Just(Move::InitError),
        Just(Move::Deliver),
        (0..3_u64).prop_map(Move::Closed),
    ]
}

proptest! {
    #[test]
    fn whatever_a_runtime_does_an_invocation_ends_at_most_once(moves in prop::collection::vec(a_move(), 0..60)) {
        let mut session = Session::new();
        let (mut delivered, mut ended, mut failed) = (0_u128, Vec::new(), false);
        for step in moves {
            let event = match step {
                Move::Next(wire) => ask(&mut session, ConnectionId(wire)).event,
                Move::Answer { number, how, attempt } => {
                    let attempt = attempt.map(|attempt| attempt.to_string());
                    let fields: Vec<_> = attempt.iter().map(|text| ("lambda-runtime-invocation-id", text.as_str())).collect();
                    answer(&mut session, number, how, &fields, Content::whole("")).event
                }
                Move::InitError => session.request(WIRE, &parts("POST", "/runtime/init/error", &[]), Content::whole("")).event,
                Move::Deliver => {
                    delivered += u128::from(session.deliver(invocation(delivered)).is_ok());
                    None
                }
                Move::Closed(wire) => {
                    session.closed(ConnectionId(wire));
                    None
                }
            };
            match event {
                Some(Event::Ended(end)) => {
                    prop_assert_eq!(end.id, id(delivered - 1), "only the last delivery can end");
                    prop_assert!(!ended.contains(&end.id) && !failed);
                    ended.push(end.id);
                }
                Some(Event::InitFailed(_)) => failed = true,
                Some(Event::Ready { .. }) => prop_assert_eq!(ended.len() as u128, delivered, "ready means the last one ended"),
                Some(Event::Taken { .. }) | None => {}
            }
        }
    }

    #[test]
    fn no_path_makes_it_panic(path in "/[!-~]{0,60}", body in ".{0,40}") {
        if let Ok(request) = Request::builder().method("POST").uri(path).body(()) {
            running(1).request(WIRE, &request.into_parts().0, Content::whole(body));
        }
    }

    #[test]
    fn no_client_context_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,40}") {
        let _ = client_context(&STANDARD.encode(bytes));
        let _ = client_context(&text);
    }
}
