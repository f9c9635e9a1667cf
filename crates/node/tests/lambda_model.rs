//! The Lambda wire against the service model of the installed botocore, and botocore's parsers against the answers.

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use bytes::Bytes;
    use http::{HeaderMap, Method, Response, StatusCode};
    use model::{Class, InstanceId, InvocationId, Time, Version, config};
    use serde_json::{Value, json};
    use takt_node::code::{Code, CodeId};
    use takt_node::lambda::invoke::{Answer, Outcome, Timing};
    use takt_node::lambda::path::Page;
    use takt_node::lambda::{Error, FunctionRef, Home, ThrottleReason, api, invoke, path};
    use takt_node::registry::{Deployed, Function, LastUpdate, Measured, State};

    /// Prints the model's operations and error shapes, and what botocore's parser reads in the answers given on stdin.
    const SCRIPT: &str = r#"
import json, sys
try:
    import botocore.session, botocore.parsers
except ImportError as error:
    print(json.dumps({"skip": str(error)})); sys.exit(0)
model = botocore.session.Session().get_service_model("lambda")
operations, errors = {}, {}
for name in model.operation_names:
    op = model.operation_model(name)
    members = op.input_shape.members if op.input_shape else {}
    operations[name] = {
        "method": op.http["method"], "path": op.http["requestUri"], "status": op.http.get("responseCode", 200),
        "required": [m for m in (op.input_shape.required_members if op.input_shape else [])],
        "errors": [e.name for e in op.error_shapes],
        "output": sorted(op.output_shape.members) if op.output_shape else [],
    }
    for e in op.error_shapes:
        errors[e.name] = {"status": e.metadata.get("error", {}).get("httpStatusCode"), "members": sorted(e.members)}
configuration = sorted(model.shape_for("FunctionConfiguration").members)
parsed = []
for answer in json.load(sys.stdin):
    op = model.operation_model(answer["operation"])
    raw = {"status_code": answer["status"], "headers": botocore.parsers.HTTPHeaders() if hasattr(botocore.parsers, "HTTPHeaders") else {}, "body": answer["body"].encode()}
    import botocore.awsrequest
    raw["headers"] = botocore.awsrequest.HeadersDict(answer["headers"])
    result = botocore.parsers.RestJSONParser().parse(raw, op.output_shape)
    if hasattr(result.get("Payload"), "read"): result["Payload"] = result["Payload"].read()
    if isinstance(result.get("Payload"), bytes): result["Payload"] = result["Payload"].decode()
    parsed.append(result)
print(json.dumps({"operations": operations, "errors": errors, "configuration": configuration, "parsed": parsed}, default=str))
"#;

    /// The model and the parsed answers; `None`, with the reason printed, where there is no botocore.
    fn botocore(answers: &[Value]) -> Option<Value> {
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            println!("skipped: there is no python3 with botocore");
            return None;
        };
        // Without botocore the script ends before it reads; then the write fails and the output says why.
        let _ = child.stdin.take().unwrap().write_all(json!(answers).to_string().as_bytes());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        if let Some(reason) = value["skip"].as_str() {
            println!("skipped: python3 has no botocore ({reason})");
            return None;
        }
        Some(value)
    }

    fn answer(operation: &str, response: &Response<Bytes>) -> Value {
        let headers: serde_json::Map<String, Value> =
            response.headers().iter().map(|(name, value)| (name.as_str().to_owned(), json!(value.to_str().unwrap()))).collect();
        let body = str::from_utf8(response.body()).unwrap();
        json!({ "operation": operation, "status": response.status().as_u16(), "headers": headers, "body": body })
    }

    /// The request target of an operation with every parameter filled in.
    fn target(template: &str) -> (String, String) {
        let (path, query) = template.split_once('?').unwrap_or((template, ""));
        let arn = "arn%3Aaws%3Alambda%3Aeu-west-1%3A000000000000%3Afunction%3Ahello";
        let segment = |segment: &str| match segment {
            "{Resource}" => arn.to_owned(),
            parameter if parameter.starts_with('{') => "hello".to_owned(),
            fixed => fixed.to_owned(),
        };
        (path.split('/').map(segment).collect::<Vec<_>>().join("/"), query.to_owned())
    }

    #[test]
    fn every_operation_of_the_model_is_done_or_refused_by_name() {
        let Some(model) = botocore(&[]) else {
            return;
        };
        let mut done = 0;
        for (name, operation) in model["operations"].as_object().unwrap() {
            let method: Method = operation["method"].as_str().unwrap().parse().unwrap();
            let (path, mut query) = target(operation["path"].as_str().unwrap());
            if name == "UntagResource" {
                "tagKeys=a".clone_into(&mut query);
            }
            match path::parse(&method, &path, Some(&query)) {
                Ok(call) => {
                    assert_eq!(call.operation(), name);
                    // The model says 200, the service answers 204.
                    let status = if name == "DeleteFunction" { json!(204) } else { operation["status"].clone() };
                    assert_eq!(json!(call.success().as_u16()), status, "{name}");
                    done += 1;
                }
                Err(Error::NotSupported { what }) => assert_eq!(what, format!("the operation {name}")),
                Err(other) => panic!("{name}: {other}"),
            }
        }
        assert_eq!(done, 15, "operations of this node that the model has");
    }

    #[test]
    fn the_reference_lists_what_is_done() {
        let reference = include_str!("../../../docs/reference/lambda-api.md");
        let rows = reference.lines().filter_map(|line| line.strip_prefix("| `")).map(|row| row.split(" | ").collect::<Vec<_>>());
        let mut listed = 0;
        for row in rows {
            let (method, template) = row[1].split_once(' ').unwrap();
            let (path, query) = target(template);
            let call = path::parse(&method.parse().unwrap(), &path, Some(&query)).unwrap();
            assert_eq!(format!("{}`", call.operation()), row[0]);
            assert_eq!(format!("{} |", call.success().as_u16()), row[2]);
            listed += 1;
        }
        assert_eq!(listed, 15);
    }

    #[test]
    fn required_members_are_required() {
        let Some(model) = botocore(&[]) else {
            return;
        };
        let whole = json!({
            "FunctionName": "hello", "Role": "arn:aws:iam::000000000000:role/any", "Runtime": "python3.12", "Handler": "a.b",
            "Code": { "ZipFile": "UEs=" }, "Tags": { "a": "b" },
        });
        let check = |operation: &str, read: &dyn Fn(&[u8]) -> Result<(), Error>| {
            read(whole.to_string().as_bytes()).unwrap();
            for member in model["operations"][operation]["required"].as_array().unwrap() {
                let member = member.as_str().unwrap();
                if member == "Resource" {
                    continue; // it stands in the path
                }
                let mut partial = whole.clone();
                partial.as_object_mut().unwrap().remove(member);
                let error = read(partial.to_string().as_bytes()).unwrap_err();
                assert_eq!(error.code(), "ValidationException", "{operation} without {member}");
                let (first, rest) = member.split_at(1);
                let quoted = format!("'{}{rest}'", first.to_ascii_lowercase());
                assert!(error.to_string().contains(&quoted), "{operation} without {member}: {error}");
            }
        };
        check("CreateFunction", &|body| api::create(body).map(drop));
        check("TagResource", &|body| api::tag_resource(body).map(drop));
        let untag = path::parse(&Method::DELETE, &target("/2017-03-31/tags/{Resource}").0, None).unwrap_err();
        assert!(untag.to_string().contains("'tagKeys'"), "{untag}");
    }

    fn errors() -> Vec<Error> {
        let message = || "m".to_owned();
        vec![
            Error::InvalidParameterValue { message: message() },
            Error::InvalidRequestContent { message: message() },
            Error::ResourceNotFound { message: message() },
            Error::ResourceConflict { message: message() },
            Error::PreconditionFailed { message: message() },
            Error::RequestTooLarge { limit: 1, operation: "Invoke" },
            Error::CodeStorageExceeded { message: message() },
            Error::TooManyRequests {
                reason: ThrottleReason::GuaranteedRate,
                message: message(),
                retry_after: Some(Duration::from_millis(1500)),
            },
            Error::ResourceNotReady { message: message() },
            Error::Service { message: message() },
        ]
    }

    #[test]
    fn errors_have_the_model_s_status_and_members_and_botocore_reads_them() {
        let answers: Vec<Value> = errors().iter().map(|error| answer("Invoke", &error.response())).collect();
        let Some(model) = botocore(&answers) else {
            return;
        };
        for (error, parsed) in errors().iter().zip(model["parsed"].as_array().unwrap()) {
            let code = error.code();
            let shape = &model["errors"][code];
            assert_eq!(json!(error.status().as_u16()), shape["status"], "{code}");
            let body: Value = serde_json::from_slice(error.response().body()).unwrap();
            let known = shape["members"].as_array().unwrap();
            for member in body.as_object().unwrap().keys() {
                assert!(known.contains(&json!(member)), "{code} has no member {member}");
            }
            assert_eq!((&parsed["Error"]["Code"], &parsed["Error"]["Message"]), (&json!(code), &json!(error.to_string())));
        }
    }

    fn function() -> Function {
        let text = "name = \"hello\"\nruntime = \"python3.12\"\n[guarantee]\nrate = \"30/s\"\n[environment]\nMODE = \"fast\"";
        let mut spec = config::parse(text).unwrap();
        "arn:aws:iam::000000000000:role/any".clone_into(&mut spec.role);
        Function {
            current: Deployed { spec, code: Code { id: CodeId::of(b"PK"), bytes: 2 }, version: Version(1) },
            state: State::Failed { reason: "why".to_owned() },
            pending: None,
            last_update: LastUpdate::Failed { reason: "why".to_owned() },
            admitted: None,
            measured: Measured::default(),
            created_ms: 0,
            modified_ms: 1,
            revision: 1,
        }
    }

    #[test]
    fn botocore_reads_every_member_of_the_answers() {
        let (home, function) = (Home::default(), function());
        let described = api::Described::new(&home, &function);
        let page = Page { marker: None, max_items: 50 };
        let account = api::Account { code_limit_bytes: 9, code_bytes: 2, functions: 1, instances: 8, unreserved_instances: 4 };
        let name = &function.current.spec.name;
        let bodies = [
            ("CreateFunction", described.configuration()),
            ("UpdateFunctionCode", described.configuration()),
            ("UpdateFunctionConfiguration", described.configuration()),
            ("GetFunctionConfiguration", described.configuration()),
            ("GetFunction", described.with_code("http://localhost:9000/")),
            ("ListFunctions", api::list(&home, std::iter::once(&function), &page)),
            ("ListVersionsByFunction", described.versions()),
            ("ListTags", described.list_tags()),
            ("GetAccountSettings", api::account_settings(&account)),
            ("GetFunctionCodeSigningConfig", api::signing_config(name)),
            ("GetFunctionConcurrency", api::concurrency()),
        ];
        let answers: Vec<Value> =
            bodies.iter().map(|(operation, body)| answer(operation, &api::json_response(StatusCode::OK, body))).collect();
        let Some(model) = botocore(&answers) else {
            return;
        };
        for ((operation, body), parsed) in bodies.iter().zip(model["parsed"].as_array().unwrap()) {
            let mut parsed = parsed.clone();
            parsed.as_object_mut().unwrap().remove("ResponseMetadata");
            // What the model does not know, the parser drops: so nothing was said that no client hears.
            assert_eq!(&parsed, body, "{operation}");
        }
    }

    #[test]
    fn botocore_reads_the_answers_of_an_invocation() {
        let id = InvocationId::from_random(1);
        let timing = Timing {
            class: Class::Guaranteed,
            conforming: Some(Time::ZERO),
            arrived: Time::ZERO,
            delivered: Some(Time::ZERO),
            started: Some(Time::ZERO),
            start_within: Some(Duration::from_millis(50)),
            instance: Some(InstanceId(1)),
        };
        let respond = |outcome| Answer { id, trace: "Root=1-a", timing, log_tail: Some("YQ==") }.response(outcome);
        let answers = [
            answer("Invoke", &respond(Outcome::Succeeded(Bytes::from_static(b"{\"a\":1}")))),
            answer("Invoke", &respond(Outcome::TimedOut(Duration::from_secs(3)))),
            answer("Invoke", &invoke::dry_run(id)),
        ];
        let Some(model) = botocore(&answers) else {
            return;
        };
        let [success, timeout, dry_run] = [0, 1, 2].map(|index| model["parsed"][index].clone());
        assert_eq!((&success["StatusCode"], &success["Payload"]), (&json!(200), &json!("{\"a\":1}")));
        assert_eq!((&success["ExecutedVersion"], &success["LogResult"]), (&json!("$LATEST"), &json!("YQ==")));
        assert_eq!(success["ResponseMetadata"]["RequestId"], json!(id.to_string()));
        assert!(success.get("FunctionError").is_none());
        assert_eq!((&timeout["StatusCode"], &timeout["FunctionError"]), (&json!(200), &json!("Unhandled")));
        assert!(timeout["Payload"].as_str().unwrap().contains("Sandbox.Timedout"));
        assert_eq!(dry_run["StatusCode"], json!(204));
        invoke::Invoke::parse(FunctionRef::parse("hello", None).unwrap(), &HeaderMap::new()).unwrap();
    }
}
