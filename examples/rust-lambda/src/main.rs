//! Answers its input with what it was told about the invocation; `{"fail": "why"}` makes it report an error.

use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lambda_runtime::run(service_fn(handle)).await
}

async fn handle(event: LambdaEvent<Value>) -> Result<Value, Error> {
    if let Some(reason) = event.payload.get("fail").and_then(Value::as_str) {
        return Err(reason.into());
    }
    Ok(json!({
        "input": event.payload,
        "request_id": event.context.request_id,
        "deadline_ms": event.context.deadline,
        "function_arn": event.context.invoked_function_arn,
        "memory_mb": event.context.env_config.memory,
    }))
}
