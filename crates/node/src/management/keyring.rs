//! `/v1/keys`: the node's own keys.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Error, Shared};

/// Keys, in clear: whoever is answered holds the token they replace.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeysAnswer {
    access_key_id: String,
    secret_access_key: String,
    token: String,
}

/// Replaces the access key, its secret and the token. When it answers, the old ones open nothing any more.
#[utoipa::path(post, path = "/v1/keys/rotate", responses((status = 200, body = KeysAnswer), (status = 429)))]
pub(super) async fn rotate(State(shared): State<Shared>) -> Result<Response, Error> {
    let keys = shared.keyring.rotate().await.map_err(|source| Error::Keys { source })?;
    let answer = KeysAnswer {
        access_key_id: keys.access_key_id,
        secret_access_key: keys.secret_access_key.reveal().to_owned(),
        token: keys.token.reveal().to_owned(),
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}
