//! The description of `/v1`, made from the code that serves it.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, Required, ResponseBuilder, Type};

use super::{Error, functions, guarantee, keyring, logs, metrics, node};

/// What the guaranteed lane serves itself, so that input of a lease takes no way round.
pub(super) const LEASE: &str = "/v1/leases/{lease}";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Takt",
        description = "A serverless platform with a guaranteed invocation rate: its own API. AWS's paths and /fn/NAME are not described here."
    ),
    paths(
        functions::list,
        functions::show,
        functions::deploy,
        functions::delete,
        functions::code,
        guarantee::show,
        guarantee::set,
        guarantee::withdraw,
        guarantee::explain,
        guarantee::would_admit,
        guarantee::pre_invoke,
        guarantee::list_rate_classes,
        guarantee::put_rate_class,
        guarantee::delete_rate_class,
        logs::read,
        node::show,
        node::backup,
        keyring::rotate,
        metrics::show,
        show,
    )
)]
struct Description;

/// The whole description, what the lanes serve included.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Description::openapi();
    let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0.0)).build();
    let lease =
        ParameterBuilder::new().name("lease").parameter_in(ParameterIn::Path).required(Required::True).schema(Some(number));
    let responses = [
        ("200", "The function's result, with the headers of an invocation"),
        ("404", "The lease is unknown, expired or used"),
        ("408", "It could not start in time for the promised deadline"),
        ("413", "More than 64 KiB, or a length that is not stated"),
    ];
    let operation = OperationBuilder::new()
        .operation_id(Some("supply"))
        .summary(Some("Gives a lease its input: the body. The held instance starts at once."))
        .parameter(lease);
    let operation = responses.into_iter().fold(operation, |operation, (status, text)| {
        operation.response(status, ResponseBuilder::new().description(text).build())
    });
    document.paths.add_path_operation(LEASE, vec![HttpMethod::Post], operation.build());
    document
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, content_type = "application/json")))]
pub(super) async fn show() -> Result<Response, Error> {
    let text = document().to_json().map_err(|source| Error::Internal { reason: source.to_string() })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}
