//! A node's management API, called from a command: one request, one answer, or a stream of lines.
//!
//! Plain HTTP/1.1 to one address. Answers are limited in size and time; an answer that is an error of the node becomes an
//! error here, with the node's own words.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::args::NodeArgs;
use crate::home;

/// No answer of the management API is larger.
const MAX_ANSWER_BYTES: usize = 64 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The longest invocation takes 900 s; its answer may take a little longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(960);

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or IP address, IPv6 ones without brackets.
    pub host: String,
    pub port: u16,
    /// The `Host` header.
    pub authority: String,
}

impl Address {
    /// Reads `http://HOST[:PORT]`. Errors on anything else, `https` included: a node speaks plain HTTP.
    pub fn parse(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("`{url}` is not the address of a node; write http://HOST:PORT");
        }
        let host = uri.host().filter(|host| !host.is_empty()).with_context(|| format!("`{url}` names no host"))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            bail!("`{url}` has a path; the address of a node is http://HOST:PORT");
        }
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        if authority.contains('@') {
            bail!("`{url}` names a user; the address of a node is http://HOST:PORT");
        }
        let port = match authority.strip_prefix(host) {
            Some("") => 80,
            Some(rest) => rest.trim_start_matches(':').parse().with_context(|| format!("`{url}` names no port"))?,
            None => bail!("`{url}` names no host"),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok(Self { host: bare.to_owned(), port, authority: format!("{host}:{port}") })
    }

    /// Opens a connection. Errors after five seconds.
    pub async fn connect(&self) -> Result<TcpStream> {
        let opening = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(CONNECT_WITHIN, opening)
            .await
            .with_context(|| format!("no node answers at http://{} within {CONNECT_WITHIN:?}", self.authority))?
            .with_context(|| {
                format!("no node at http://{}; start one with `takt serve`, or name one with --url", self.authority)
            })?;
        stream.set_nodelay(true).context("cannot set up the connection")?;
        Ok(stream)
    }
}

/// What a node answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; an empty one is `null`. Errors when it is something else.
    pub fn json(&self) -> Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).with_context(|| {
            let start: String = String::from_utf8_lossy(&self.body).chars().take(200).collect();
            format!("the node's answer ({}) is not JSON: {start}", self.status)
        })
    }

    /// The JSON of a success; an error status becomes an error with the node's message.
    pub fn success(&self) -> Result<Value> {
        if self.status.is_success() {
            return self.json();
        }
        bail!("{}", self.message());
    }

    /// What an error answer says: its `message`, wherever the node put it, or the status.
    #[must_use]
    pub fn message(&self) -> String {
        let value = self.json().unwrap_or(Value::Null);
        let found = [&value["error"]["message"], &value["message"], &value["Message"], &value["error"]];
        match found.into_iter().find_map(Value::as_str) {
            Some(message) => message.to_owned(),
            None => format!("the node answered {}", self.status),
        }
    }
}

/// Speaks to one node.
#[derive(Clone)]
pub struct Client {
    pub address: Address,
    /// What it is shown to be let in.
    pub token: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    /// The node that the arguments name, with the token they give or the one in the data directory.
    pub fn new(args: &NodeArgs) -> Result<Self> {
        let token = match &args.token {
            Some(token) => token.clone(),
            None => home::keys(args.data_dir.clone())?.token.reveal().to_owned(),
        };
        Ok(Self { address: Address::parse(&args.url)?, token })
    }

    /// One request and its whole answer. Blocks.
    pub fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let headers: &[(&str, &str)] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
        let bytes = body.map_or_else(Vec::new, |body| body.to_string().into_bytes());
        self.send(method, path, headers, bytes)
    }

    /// One request with these headers and this body. Blocks.
    pub fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer> {
        let request = self.request(method, path, headers, body)?;
        event_loop()?.block_on(async {
            let exchange = async {
                let (response, _driver) = self.exchange(request).await?;
                whole(response).await
            };
            tokio::time::timeout(ANSWER_WITHIN, exchange)
                .await
                .with_context(|| format!("http://{} did not answer within {ANSWER_WITHIN:?}", self.address.authority))?
        })
    }

    /// Passes the body of an answer on piece by piece, until it ends or `piece` errors. Blocks; the answer itself is given
    /// back when it is not a success.
    pub fn stream(&self, path: &str, mut piece: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<Answer>> {
        let request = self.request(Method::GET, path, &[], Vec::new())?;
        event_loop()?.block_on(async {
            let (response, _driver) = self.exchange(request).await?;
            if !response.status().is_success() {
                return whole(response).await.map(Some);
            }
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.context("the node's answer broke off")?;
                if let Some(data) = frame.data_ref() {
                    piece(data)?;
                }
            }
            Ok(None)
        })
    }

    /// A request with our headers: `Host` and the bearer token.
    pub fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.address.authority);
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.into())).with_context(|| format!("`{path}` makes no request"))
    }

    /// The answer's head with its body still to come, and the task that drives the connection meanwhile.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(http::Response<Incoming>, JoinSet<()>)> {
        let stream = TokioIo::new(self.address.connect().await?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.context("cannot set up the connection")?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // What goes wrong with it shows in the exchange it carries.
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.context("the node closed the connection")?;
        Ok((response, driver))
    }
}

async fn whole(response: http::Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the node's answer broke off: {error}"))?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

fn event_loop() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start an event loop")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_makes_the_parser_of_addresses_panic(text in "(http://)?[a-z0-9:/?@%\\[\\].-]{0,40}") {
            if let Ok(address) = Address::parse(&text) {
                let again = Address::parse(&format!("http://{}", address.authority)).unwrap();
                prop_assert_eq!(again, address);
            }
        }
    }

    #[test]
    fn a_node_has_a_plain_http_address() {
        let address = Address::parse("http://127.0.0.1:9000").unwrap();
        assert_eq!((address.host.as_str(), address.port), ("127.0.0.1", 9000));
        assert_eq!(Address::parse("http://[::1]:9000/").unwrap().host, "::1");
        assert_eq!(Address::parse("http://localhost").unwrap().authority, "localhost:80");
        assert_eq!(Address::parse("http://8:80").unwrap().authority, "8:80");
        for url in [
            "",
            "localhost:9000",
            "https://a:1",
            "http://a:1/path",
            "http://a:1/?q",
            "http://:80",
            "http://a:99999",
            "http://me@a:1",
            "http://[@]",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn the_nodes_own_words_are_found() {
        for (body, message) in [
            ("{\"error\":{\"message\":\"no room\"}}", "no room"),
            ("{\"message\":\"no room\"}", "no room"),
            ("{\"Message\":\"no room\"}", "no room"),
            ("<html>", "the node answered 409 Conflict"),
        ] {
            let answer = Answer { status: StatusCode::CONFLICT, headers: HeaderMap::new(), body: Bytes::from(body) };
            assert_eq!(answer.message(), message);
        }
    }
}
