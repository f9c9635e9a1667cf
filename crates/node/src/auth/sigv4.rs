//! Verification of AWS Signature Version 4, in headers or in the query of a presigned URL.
//!
//! The canonical request is never built: its parts are fed to the hash as they are met, so a verification allocates nothing
//! (a presigned one decodes three query values). It is done in two steps. [`Verifier::begin`] looks at the head alone and
//! refuses unknown keys, old dates and wrong scopes before a body is read; [`Unproven::finish`] takes the body's hash.
//!
//! The canonical URI is the received path percent-encoded once more, as AWS does it for every service but S3. The region is
//! free: a client may believe it is anywhere.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::header::{AUTHORIZATION, DATE};
use http::request::Parts;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime};

use super::keys::Keys;

/// The one signing algorithm.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// The service that has to be in a signature's scope.
const SERVICE: &str = "lambda";
const TERMINATOR: &str = "aws4_request";
/// How far a client's clock may be from ours, either way.
pub const MAX_SKEW: Duration = Duration::from_secs(15 * 60);
/// The longest life of a presigned URL.
pub const MAX_EXPIRES: Duration = Duration::from_secs(7 * 24 * 3600);
/// Query parameters of a signed request (an untag request carries up to 50).
pub const MAX_QUERY_PAIRS: usize = 64;
/// Bytes of query of a signed request.
pub const MAX_QUERY_BYTES: usize = 32 * 1024;
/// Headers that a signature may cover.
pub const MAX_SIGNED_HEADERS: usize = 64;
const MAX_REGION_BYTES: usize = 32;
/// Signing keys kept: today's, yesterday's and a few regions.
const CACHED_KEYS: usize = 4;

type HmacSha256 = Hmac<Sha256>;

/// Why a signature is not accepted. The texts are AWS's, where AWS has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("Missing Authentication Token")]
    Missing,
    #[error("Authorization header requires {what}.")]
    Incomplete { what: &'static str },
    #[error("the signature covers or carries more than this node looks at: {what} is limited to {limit}")]
    Limit { what: &'static str, limit: usize },
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
    #[error("the header `{header}` is not covered by the signature")]
    Unsigned { header: String },
    #[error("an unsigned payload is not accepted; sign the SHA-256 of the body")]
    UnsignedPayload,
    #[error("Signature expired: {signed} is now earlier than {earliest}")]
    Expired { signed: String, earliest: String },
    #[error("Signature not yet current: {signed} is still later than {latest}")]
    NotYetCurrent { signed: String, latest: String },
    #[error("Credential should be scoped to correct service: '{SERVICE}'.")]
    Service,
    #[error("Credential should be scoped with a valid terminator: '{TERMINATOR}'.")]
    Terminator,
    #[error("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP.")]
    ScopeDate,
}

impl Error {
    /// The error's name in AWS's answers; the status is 403 for all of them.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "MissingAuthenticationTokenException",
            Self::Incomplete { .. } | Self::Limit { .. } => "IncompleteSignatureException",
            Self::UnknownKey => "UnrecognizedClientException",
            Self::Mismatch
            | Self::Unsigned { .. }
            | Self::UnsignedPayload
            | Self::Expired { .. }
            | Self::NotYetCurrent { .. }
            | Self::Service
            | Self::Terminator
            | Self::ScopeDate => "InvalidSignatureException",
        }
    }
}

/// The SHA-256 of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadHash([u8; 32]);

impl PayloadHash {
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }

    /// The hash of a body that was hashed as it arrived.
    #[must_use]
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

/// Checks signatures made with one key pair. One per thread: it keeps the signing keys it derived.
pub struct Verifier {
    access_key_id: String,
    /// Keyed with "AWS4" and the secret: what every signing key is derived from.
    root: HmacSha256,
    cached: [Option<SigningKey>; CACHED_KEYS],
    /// The place the next derived key takes.
    next: usize,
}

struct SigningKey {
    date: [u8; 8],
    region: [u8; MAX_REGION_BYTES],
    region_bytes: usize,
    key: HmacSha256,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// A request whose head is in order; the hash of its body decides.
pub struct Unproven {
    /// Over the canonical request up to the payload's hash.
    request: Sha256,
    /// Over the string to sign up to the request's hash.
    mac: HmacSha256,
    signature: [u8; 32],
}

impl std::fmt::Debug for Unproven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unproven(..)")
    }
}

impl Unproven {
    /// Compares, in constant time, the signature the client sent with the one over this body.
    pub fn finish(mut self, payload: PayloadHash) -> Result<(), Error> {
        self.request.update(hex(&payload.0));
        self.mac.update(&hex(&self.request.finalize().into()));
        self.mac.verify_slice(&self.signature).map_err(|_| Error::Mismatch)
    }
}

/// What a request claims, as sent.
struct Claim<'a> {
    access_key_id: Cow<'a, str>,
    scope: Scope<'a>,
    signed_headers: Cow<'a, str>,
    signature: &'a str,
    signed_at: Cow<'a, str>,
    form: Form,
}

struct Scope<'a> {
    date: Cow<'a, str>,
    region: Cow<'a, str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Header,
    Query { expires: Duration },
}

impl Verifier {
    #[must_use]
    pub fn new(keys: &Keys) -> Self {
        let root = keyed(format!("AWS4{}", keys.secret_access_key.reveal()).as_bytes());
        Self { access_key_id: keys.access_key_id.clone(), root, cached: [const { None }; CACHED_KEYS], next: 0 }
    }

    /// Checks everything that the head of a request tells: form, key, scope, date and which headers are covered.
    pub fn begin(&mut self, parts: &Parts, now: SystemTime) -> Result<Unproven, Error> {
        let query = parts.uri.query().unwrap_or("");
        let claim = match header(&parts.headers, AUTHORIZATION.as_str()) {
            Some(authorization) => from_header(authorization, &parts.headers)?,
            None if query.is_empty() => return Err(Error::Missing),
            None => from_query(query)?,
        };
        if claim.access_key_id != self.access_key_id {
            return Err(Error::UnknownKey);
        }
        check_date(&claim, now)?;
        let signature = unhex(claim.signature.as_bytes()).ok_or(Error::Mismatch)?;
        check_coverage(&claim, &parts.headers)?;

        let mut feed = Feed::new();
        feed.put(parts.method.as_str().as_bytes());
        feed.put(b"\n");
        feed_path(&mut feed, parts.uri.path());
        feed.put(b"\n");
        feed_query(&mut feed, query, claim.form)?;
        feed.put(b"\n");
        for name in claim.signed_headers.split(';') {
            feed_header(&mut feed, name, &parts.headers);
        }
        feed.put(b"\n");
        feed.put(claim.signed_headers.as_bytes());
        feed.put(b"\n");
        let request = feed.finish();

        let mut mac = self.signing_key(&claim.scope);
        for part in [ALGORITHM, "\n", &claim.signed_at, "\n", &claim.scope.date, "/", &claim.scope.region, "/"] {
            mac.update(part.as_bytes());
        }
        for part in [SERVICE, "/", TERMINATOR, "\n"] {
            mac.update(part.as_bytes());
        }
        Ok(Unproven { request, mac, signature })
    }

    fn signing_key(&mut self, scope: &Scope<'_>) -> HmacSha256 {
        let same = |cached: &&SigningKey| {
            cached.date == scope.date.as_bytes() && &cached.region[..cached.region_bytes] == scope.region.as_bytes()
        };
        if let Some(cached) = self.cached.iter().flatten().find(same) {
            return cached.key.clone();
        }
        let mut mac = self.root.clone();
        for part in [scope.date.as_bytes(), scope.region.as_bytes(), SERVICE.as_bytes(), TERMINATOR.as_bytes()] {
            mac.update(part);
            mac = keyed(&mac.finalize().into_bytes());
        }
        let mut date = [0; 8];
        date.copy_from_slice(scope.date.as_bytes());
        let mut region = [0; MAX_REGION_BYTES];
        let region_bytes = scope.region.len();
        region[..region_bytes].copy_from_slice(scope.region.as_bytes());
        self.cached[self.next] = Some(SigningKey { date, region, region_bytes, key: mac.clone() });
        self.next = (self.next + 1) % CACHED_KEYS;
        mac
    }
}

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("invariant: HMAC takes a key of any length")
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn from_header<'a>(authorization: &'a str, headers: &'a HeaderMap) -> Result<Claim<'a>, Error> {
    let Some((ALGORITHM, parameters)) = authorization.split_once(' ') else {
        return Err(Error::Incomplete { what: "the algorithm 'AWS4-HMAC-SHA256'" });
    };
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for parameter in parameters.split(',') {
        match parameter.trim().split_once('=') {
            Some(("Credential", value)) => credential = Some(value),
            Some(("SignedHeaders", value)) => signed_headers = Some(value),
            Some(("Signature", value)) => signature = Some(value),
            _ => {}
        }
    }
    let credential = credential.ok_or(Error::Incomplete { what: "'Credential' parameter" })?;
    let signed_headers = signed_headers.ok_or(Error::Incomplete { what: "'SignedHeaders' parameter" })?;
    let signature = signature.ok_or(Error::Incomplete { what: "'Signature' parameter" })?;
    let date = header(headers, "x-amz-date").or_else(|| header(headers, DATE.as_str()));
    let date = date.ok_or(Error::Incomplete { what: "existence of either a 'X-Amz-Date' or a 'Date' header" })?;
    let (access_key_id, scope) = credential_parts(&Cow::Borrowed(credential))?;
    let signed_headers = Cow::Borrowed(signed_headers);
    Ok(Claim { access_key_id, scope, signed_headers, signature, signed_at: Cow::Borrowed(date), form: Form::Header })
}

fn from_query(query: &str) -> Result<Claim<'_>, Error> {
    let find = |wanted: &str| query_pairs(query).find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let decoded = |value| percent_decode_str(value).decode_utf8_lossy();
    let Some(signature) = find("X-Amz-Signature") else {
        return Err(Error::Missing);
    };
    if find("X-Amz-Algorithm") != Some(ALGORITHM) {
        return Err(Error::Incomplete { what: "the algorithm 'AWS4-HMAC-SHA256' in the query" });
    }
    let credential = find("X-Amz-Credential").map(decoded);
    let credential = credential.ok_or(Error::Incomplete { what: "'X-Amz-Credential' in the query" })?;
    let signed_headers = find("X-Amz-SignedHeaders").map(decoded);
    let signed_headers = signed_headers.ok_or(Error::Incomplete { what: "'X-Amz-SignedHeaders' in the query" })?;
    let signed_at = find("X-Amz-Date").map(decoded).ok_or(Error::Incomplete { what: "'X-Amz-Date' in the query" })?;
    let expires = find("X-Amz-Expires").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let expires = expires.filter(|expires| *expires <= MAX_EXPIRES);
    let expires = expires.ok_or(Error::Incomplete { what: "'X-Amz-Expires' of 0 to 604800 seconds in the query" })?;
    let (access_key_id, scope) = credential_parts(&credential)?;
    Ok(Claim { access_key_id, scope, signed_headers, signature, signed_at, form: Form::Query { expires } })
}

/// `KEY/DATE/REGION/lambda/aws4_request`, borrowed where the credential is.
fn credential_parts<'a>(credential: &Cow<'a, str>) -> Result<(Cow<'a, str>, Scope<'a>), Error> {
    let part = |index: usize| match credential {
        Cow::Borrowed(text) => text.split('/').nth(index).map(Cow::Borrowed),
        Cow::Owned(text) => text.split('/').nth(index).map(|part| Cow::Owned(part.to_owned())),
    };
    let incomplete = Error::Incomplete { what: "a 'Credential' of the form KEY/DATE/REGION/lambda/aws4_request" };
    let (Some(key), Some(date), Some(region), Some(service), Some(terminator), None) =
        (part(0), part(1), part(2), part(3), part(4), part(5))
    else {
        return Err(incomplete);
    };
    if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(incomplete);
    }
    if MAX_REGION_BYTES < region.len() {
        return Err(Error::Limit { what: "the region's length in bytes", limit: MAX_REGION_BYTES });
    }
    match (&*service, &*terminator) {
        (SERVICE, TERMINATOR) => Ok((key, Scope { date, region })),
        (SERVICE, _) => Err(Error::Terminator),
        _ => Err(Error::Service),
    }
}

/// The instant must lie within the skew, a presigned one within its life; and in the day of the scope.
fn check_date(claim: &Claim<'_>, now: SystemTime) -> Result<(), Error> {
    let bad_date = Error::Incomplete { what: "a date of the form YYYYMMDDTHHMMSSZ" };
    let signed_at = parse_date(&claim.signed_at).ok_or(bad_date)?;
    if claim.signed_at.get(..8) != Some(&*claim.scope.date) {
        return Err(Error::ScopeDate);
    }
    let now = OffsetDateTime::from(now);
    let latest = now + MAX_SKEW;
    let earliest = match claim.form {
        Form::Header => now - MAX_SKEW,
        Form::Query { expires } => now - expires,
    };
    if latest < signed_at {
        return Err(Error::NotYetCurrent { signed: claim.signed_at.to_string(), latest: basic_text(latest) });
    }
    if signed_at < earliest {
        return Err(Error::Expired { signed: claim.signed_at.to_string(), earliest: basic_text(earliest) });
    }
    Ok(())
}

/// `20261124T061657Z`.
fn parse_date(text: &str) -> Option<OffsetDateTime> {
    let digits = |from: usize, until: usize| {
        let part = text.get(from..until).filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        part.and_then(|part| part.parse::<u16>().ok())
    };
    let small = |from: usize| digits(from, from + 2).and_then(|number| u8::try_from(number).ok());
    if text.len() != 16 || text.as_bytes()[8] != b'T' || text.as_bytes()[15] != b'Z' {
        return None;
    }
    let month = Month::try_from(small(4)?).ok()?;
    let date = Date::from_calendar_date(i32::from(digits(0, 4)?), month, small(6)?).ok()?;
    let time = time::Time::from_hms(small(9)?, small(11)?, small(13)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc())
}

fn basic_text(at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    let (month, day) = (u8::from(date.month()), date.day());
    format!("{:04}{month:02}{day:02}T{:02}{:02}{:02}Z", date.year(), time.hour(), time.minute(), time.second())
}

/// The host and every header that can change what an AWS request means must be covered: whoever passes a signed request on
/// may not turn it into another one.
fn check_coverage(claim: &Claim<'_>, headers: &HeaderMap) -> Result<(), Error> {
    if MAX_SIGNED_HEADERS < claim.signed_headers.split(';').count() {
        return Err(Error::Limit { what: "the number of signed headers", limit: MAX_SIGNED_HEADERS });
    }
    let covered = |wanted: &str| claim.signed_headers.split(';').any(|name| name == wanted);
    if !covered("host") {
        return Err(Error::Unsigned { header: "host".to_owned() });
    }
    for (name, value) in headers {
        let name = name.as_str();
        // Date and payload hash enter the signature by themselves.
        let enters_anyway = matches!(name, "x-amz-date" | "x-amz-content-sha256");
        if name.starts_with("x-amz-") && !enters_anyway && !covered(name) {
            return Err(Error::Unsigned { header: name.to_owned() });
        }
        if name == "x-amz-content-sha256" && value.as_bytes().len() != 64 {
            return Err(Error::UnsignedPayload);
        }
    }
    Ok(())
}

/// Bytes on their way into the hash, in pieces large enough to be worth a call.
struct Feed {
    hash: Sha256,
    buffer: [u8; 256],
    used: usize,
}

impl Feed {
    fn new() -> Self {
        Self { hash: Sha256::new(), buffer: [0; 256], used: 0 }
    }

    fn byte(&mut self, byte: u8) {
        if self.used == self.buffer.len() {
            self.hash.update(self.buffer);
            self.used = 0;
        }
        self.buffer[self.used] = byte;
        self.used += 1;
    }

    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.byte(*byte);
        }
    }

    fn finish(mut self) -> Sha256 {
        self.hash.update(&self.buffer[..self.used]);
        self.hash
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// The one to three bytes that stand for a byte in AWS's strict percent-encoding.
fn encoded(byte: u8) -> impl Iterator<Item = u8> {
    let triple = [b'%', HEX_UPPER[usize::from(byte >> 4)], HEX_UPPER[usize::from(byte & 15)]];
    let (bytes, count) = if is_unreserved(byte) { ([byte, 0, 0], 1) } else { (triple, 3) };
    bytes.into_iter().take(count)
}

fn feed_path(feed: &mut Feed, path: &str) {
    if path.is_empty() {
        feed.byte(b'/');
    }
    for byte in path.bytes() {
        match byte {
            b'/' => feed.byte(b'/'),
            other => encoded(other).for_each(|byte| feed.byte(byte)),
        }
    }
}

fn query_pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// A query part as AWS encodes it, whatever way the client chose.
fn canonical(text: &str) -> impl Iterator<Item = u8> {
    percent_decode_str(text).flat_map(encoded)
}

/// The query sorted by encoded name, then value; a presigned one without its signature.
fn feed_query(feed: &mut Feed, query: &str, form: Form) -> Result<(), Error> {
    if MAX_QUERY_BYTES < query.len() {
        return Err(Error::Limit { what: "the query's length in bytes", limit: MAX_QUERY_BYTES });
    }
    let mut pairs = [("", ""); MAX_QUERY_PAIRS];
    let mut count = 0;
    for (name, value) in query_pairs(query) {
        if form != Form::Header && name == "X-Amz-Signature" {
            continue;
        }
        let too_many = Error::Limit { what: "the number of query parameters", limit: MAX_QUERY_PAIRS };
        *pairs.get_mut(count).ok_or(too_many)? = (name, value);
        count += 1;
    }
    let pairs = &mut pairs[..count];
    pairs.sort_unstable_by(|a, b| canonical(a.0).cmp(canonical(b.0)).then_with(|| canonical(a.1).cmp(canonical(b.1))));
    for (index, (name, value)) in pairs.iter().enumerate() {
        if index != 0 {
            feed.byte(b'&');
        }
        canonical(name).for_each(|byte| feed.byte(byte));
        feed.byte(b'=');
        canonical(value).for_each(|byte| feed.byte(byte));
    }
    Ok(())
}

/// `name:value\n`, the values of a repeated header joined by commas, white space trimmed and collapsed.
fn feed_header(feed: &mut Feed, name: &str, headers: &HeaderMap) {
    feed.put(name.as_bytes());
    feed.byte(b':');
    for (index, value) in headers.get_all(name).iter().enumerate() {
        if index != 0 {
            feed.byte(b',');
        }
        let words = value.as_bytes().split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        for (index, word) in words.enumerate() {
            if index != 0 {
                feed.byte(b' ');
            }
            feed.put(word);
        }
    }
    feed.byte(b'\n');
}

fn hex(bytes: &[u8; 32]) -> [u8; 64] {
    const HEX_LOWER: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = HEX_LOWER[usize::from(byte >> 4)];
        pair[1] = HEX_LOWER[usize::from(byte & 15)];
    }
    text
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
