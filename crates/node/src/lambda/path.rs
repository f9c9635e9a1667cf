//! Which operation a request asks for, and the parameters its path and query carry.

use std::borrow::Cow;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::{Error, FunctionRef};

/// The longest page of a list, whatever the client asks for; AWS's number.
pub const MAX_PAGE: usize = 50;
/// Tag keys that one request may remove; AWS's number of tags.
const MAX_TAG_KEYS: usize = 50;
/// Bytes of body of operations that carry no code and no payload.
const MAX_SMALL_BODY_BYTES: usize = 256 * 1024;
/// Characters of an unknown path that an error repeats.
const SHOWN_CHARS: usize = 200;

/// A request for an operation that this node has. Bodies are read by [`super::api`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Invoke(FunctionRef),
    CreateFunction,
    UpdateFunctionCode(FunctionRef),
    UpdateFunctionConfiguration(FunctionRef),
    GetFunction(FunctionRef),
    GetFunctionConfiguration(FunctionRef),
    ListFunctions(Page),
    DeleteFunction(FunctionRef),
    TagResource(FunctionRef),
    UntagResource { function: FunctionRef, keys: Vec<String> },
    ListTags(FunctionRef),
    GetAccountSettings,
    GetFunctionCodeSigningConfig(FunctionRef),
    ListVersionsByFunction { function: FunctionRef, page: Page },
    GetFunctionConcurrency(FunctionRef),
}

impl Call {
    /// AWS's name of the operation.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        match self {
            Self::Invoke(_) => "Invoke",
            Self::CreateFunction => "CreateFunction",
            Self::UpdateFunctionCode(_) => "UpdateFunctionCode",
            Self::UpdateFunctionConfiguration(_) => "UpdateFunctionConfiguration",
            Self::GetFunction(_) => "GetFunction",
            Self::GetFunctionConfiguration(_) => "GetFunctionConfiguration",
            Self::ListFunctions(_) => "ListFunctions",
            Self::DeleteFunction(_) => "DeleteFunction",
            Self::TagResource(_) => "TagResource",
            Self::UntagResource { .. } => "UntagResource",
            Self::ListTags(_) => "ListTags",
            Self::GetAccountSettings => "GetAccountSettings",
            Self::GetFunctionCodeSigningConfig(_) => "GetFunctionCodeSigningConfig",
            Self::ListVersionsByFunction { .. } => "ListVersionsByFunction",
            Self::GetFunctionConcurrency(_) => "GetFunctionConcurrency",
        }
    }

    /// The status of its success. AWS answers DeleteFunction with 204, though its model says 200.
    #[must_use]
    pub fn success(&self) -> StatusCode {
        match self {
            Self::CreateFunction => StatusCode::CREATED,
            Self::DeleteFunction(_) | Self::TagResource(_) | Self::UntagResource { .. } => StatusCode::NO_CONTENT,
            Self::Invoke(_)
            | Self::UpdateFunctionCode(_)
            | Self::UpdateFunctionConfiguration(_)
            | Self::GetFunction(_)
            | Self::GetFunctionConfiguration(_)
            | Self::ListFunctions(_)
            | Self::ListTags(_)
            | Self::GetAccountSettings
            | Self::GetFunctionCodeSigningConfig(_)
            | Self::ListVersionsByFunction { .. }
            | Self::GetFunctionConcurrency(_) => StatusCode::OK,
        }
    }

    /// Bytes of body that the operation takes; the front stops reading there.
    #[must_use]
    pub fn body_limit(&self) -> usize {
        match self {
            Self::Invoke(_) => super::invoke::MAX_PAYLOAD_BYTES,
            Self::CreateFunction | Self::UpdateFunctionCode(_) => super::api::MAX_CREATE_BYTES,
            Self::UpdateFunctionConfiguration(_)
            | Self::GetFunction(_)
            | Self::GetFunctionConfiguration(_)
            | Self::ListFunctions(_)
            | Self::DeleteFunction(_)
            | Self::TagResource(_)
            | Self::UntagResource { .. }
            | Self::ListTags(_)
            | Self::GetAccountSettings
            | Self::GetFunctionCodeSigningConfig(_)
            | Self::ListVersionsByFunction { .. }
            | Self::GetFunctionConcurrency(_) => MAX_SMALL_BODY_BYTES,
        }
    }

    /// What a request with a body above [`Call::body_limit`] is told.
    #[must_use]
    pub fn too_large(&self) -> Error {
        if let Self::Invoke(_) = self {
            return super::invoke::too_large();
        }
        Error::RequestTooLarge { limit: self.body_limit(), operation: self.operation() }
    }
}

/// The part of a list that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What the page before this one answered as `NextMarker`.
    pub marker: Option<String>,
    /// 1 to [`MAX_PAGE`].
    pub max_items: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Invoke,
    CreateFunction,
    UpdateFunctionCode,
    UpdateFunctionConfiguration,
    GetFunction,
    GetFunctionConfiguration,
    ListFunctions,
    DeleteFunction,
    TagResource,
    UntagResource,
    ListTags,
    GetAccountSettings,
    GetFunctionCodeSigningConfig,
    ListVersionsByFunction,
    GetFunctionConcurrency,
    /// AWS has it, this node does not.
    NotYet,
}

struct Operation {
    name: &'static str,
    method: &'static str,
    /// AWS's template: `{Name}` stands for one segment, a query pair after `?` has to be there.
    template: &'static str,
    kind: Kind,
}

const fn op(name: &'static str, method: &'static str, template: &'static str, kind: Kind) -> Operation {
    Operation { name, method, template, kind }
}

/// The Lambda API. Invoke stands first because it is asked for most; a template with a query pair stands before the one
/// without.
#[rustfmt::skip]
const OPERATIONS: &[Operation] = &[
    op("Invoke", "POST", "/2015-03-31/functions/{FunctionName}/invocations", Kind::Invoke),
    op("CreateFunction", "POST", "/2015-03-31/functions", Kind::CreateFunction),
    op("UpdateFunctionCode", "PUT", "/2015-03-31/functions/{FunctionName}/code", Kind::UpdateFunctionCode),
    op("UpdateFunctionConfiguration", "PUT", "/2015-03-31/functions/{FunctionName}/configuration", Kind::UpdateFunctionConfiguration),
    op("GetFunction", "GET", "/2015-03-31/functions/{FunctionName}", Kind::GetFunction),
    op("GetFunctionConfiguration", "GET", "/2015-03-31/functions/{FunctionName}/configuration", Kind::GetFunctionConfiguration),
    op("ListFunctions", "GET", "/2015-03-31/functions", Kind::ListFunctions),
    op("DeleteFunction", "DELETE", "/2015-03-31/functions/{FunctionName}", Kind::DeleteFunction),
    op("TagResource", "POST", "/2017-03-31/tags/{Resource}", Kind::TagResource),
    op("UntagResource", "DELETE", "/2017-03-31/tags/{Resource}", Kind::UntagResource),
    op("ListTags", "GET", "/2017-03-31/tags/{Resource}", Kind::ListTags),
    op("GetAccountSettings", "GET", "/2016-08-19/account-settings", Kind::GetAccountSettings),
    op("GetFunctionCodeSigningConfig", "GET", "/2020-06-30/functions/{FunctionName}/code-signing-config", Kind::GetFunctionCodeSigningConfig),
    op("ListVersionsByFunction", "GET", "/2015-03-31/functions/{FunctionName}/versions", Kind::ListVersionsByFunction),
    op("GetFunctionConcurrency", "GET", "/2019-09-30/functions/{FunctionName}/concurrency", Kind::GetFunctionConcurrency),
    op("InvokeAsync", "POST", "/2014-11-13/functions/{FunctionName}/invoke-async", Kind::NotYet),
    op("ListEventSourceMappings", "GET", "/2015-03-31/event-source-mappings", Kind::NotYet),
    op("CreateEventSourceMapping", "POST", "/2015-03-31/event-source-mappings", Kind::NotYet),
    op("DeleteEventSourceMapping", "DELETE", "/2015-03-31/event-source-mappings/{UUID}", Kind::NotYet),
    op("GetEventSourceMapping", "GET", "/2015-03-31/event-source-mappings/{UUID}", Kind::NotYet),
    op("UpdateEventSourceMapping", "PUT", "/2015-03-31/event-source-mappings/{UUID}", Kind::NotYet),
    op("ListAliases", "GET", "/2015-03-31/functions/{FunctionName}/aliases", Kind::NotYet),
    op("CreateAlias", "POST", "/2015-03-31/functions/{FunctionName}/aliases", Kind::NotYet),
    op("DeleteAlias", "DELETE", "/2015-03-31/functions/{FunctionName}/aliases/{Name}", Kind::NotYet),
    op("GetAlias", "GET", "/2015-03-31/functions/{FunctionName}/aliases/{Name}", Kind::NotYet),
    op("UpdateAlias", "PUT", "/2015-03-31/functions/{FunctionName}/aliases/{Name}", Kind::NotYet),
    op("GetPolicy", "GET", "/2015-03-31/functions/{FunctionName}/policy", Kind::NotYet),
    op("AddPermission", "POST", "/2015-03-31/functions/{FunctionName}/policy", Kind::NotYet),
    op("RemovePermission", "DELETE", "/2015-03-31/functions/{FunctionName}/policy/{StatementId}", Kind::NotYet),
    op("PublishVersion", "POST", "/2015-03-31/functions/{FunctionName}/versions", Kind::NotYet),
    op("DeleteFunctionConcurrency", "DELETE", "/2017-10-31/functions/{FunctionName}/concurrency", Kind::NotYet),
    op("PutFunctionConcurrency", "PUT", "/2017-10-31/functions/{FunctionName}/concurrency", Kind::NotYet),
    op("GetLayerVersionByArn", "GET", "/2018-10-31/layers?find=LayerVersion", Kind::NotYet),
    op("ListLayers", "GET", "/2018-10-31/layers", Kind::NotYet),
    op("ListLayerVersions", "GET", "/2018-10-31/layers/{LayerName}/versions", Kind::NotYet),
    op("PublishLayerVersion", "POST", "/2018-10-31/layers/{LayerName}/versions", Kind::NotYet),
    op("DeleteLayerVersion", "DELETE", "/2018-10-31/layers/{LayerName}/versions/{VersionNumber}", Kind::NotYet),
    op("GetLayerVersion", "GET", "/2018-10-31/layers/{LayerName}/versions/{VersionNumber}", Kind::NotYet),
    op("GetLayerVersionPolicy", "GET", "/2018-10-31/layers/{LayerName}/versions/{VersionNumber}/policy", Kind::NotYet),
    op("AddLayerVersionPermission", "POST", "/2018-10-31/layers/{LayerName}/versions/{VersionNumber}/policy", Kind::NotYet),
    op("RemoveLayerVersionPermission", "DELETE", "/2018-10-31/layers/{LayerName}/versions/{VersionNumber}/policy/{StatementId}", Kind::NotYet),
    op("DeleteFunctionEventInvokeConfig", "DELETE", "/2019-09-25/functions/{FunctionName}/event-invoke-config", Kind::NotYet),
    op("GetFunctionEventInvokeConfig", "GET", "/2019-09-25/functions/{FunctionName}/event-invoke-config", Kind::NotYet),
    op("UpdateFunctionEventInvokeConfig", "POST", "/2019-09-25/functions/{FunctionName}/event-invoke-config", Kind::NotYet),
    op("PutFunctionEventInvokeConfig", "PUT", "/2019-09-25/functions/{FunctionName}/event-invoke-config", Kind::NotYet),
    op("ListFunctionEventInvokeConfigs", "GET", "/2019-09-25/functions/{FunctionName}/event-invoke-config/list", Kind::NotYet),
    op("DeleteProvisionedConcurrencyConfig", "DELETE", "/2019-09-30/functions/{FunctionName}/provisioned-concurrency", Kind::NotYet),
    op("ListProvisionedConcurrencyConfigs", "GET", "/2019-09-30/functions/{FunctionName}/provisioned-concurrency?List=ALL", Kind::NotYet),
    op("GetProvisionedConcurrencyConfig", "GET", "/2019-09-30/functions/{FunctionName}/provisioned-concurrency", Kind::NotYet),
    op("PutProvisionedConcurrencyConfig", "PUT", "/2019-09-30/functions/{FunctionName}/provisioned-concurrency", Kind::NotYet),
    op("ListCodeSigningConfigs", "GET", "/2020-04-22/code-signing-configs", Kind::NotYet),
    op("CreateCodeSigningConfig", "POST", "/2020-04-22/code-signing-configs", Kind::NotYet),
    op("DeleteCodeSigningConfig", "DELETE", "/2020-04-22/code-signing-configs/{CodeSigningConfigArn}", Kind::NotYet),
    op("GetCodeSigningConfig", "GET", "/2020-04-22/code-signing-configs/{CodeSigningConfigArn}", Kind::NotYet),
    op("UpdateCodeSigningConfig", "PUT", "/2020-04-22/code-signing-configs/{CodeSigningConfigArn}", Kind::NotYet),
    op("ListFunctionsByCodeSigningConfig", "GET", "/2020-04-22/code-signing-configs/{CodeSigningConfigArn}/functions", Kind::NotYet),
    op("DeleteFunctionCodeSigningConfig", "DELETE", "/2020-06-30/functions/{FunctionName}/code-signing-config", Kind::NotYet),
    op("PutFunctionCodeSigningConfig", "PUT", "/2020-06-30/functions/{FunctionName}/code-signing-config", Kind::NotYet),
    op("GetRuntimeManagementConfig", "GET", "/2021-07-20/functions/{FunctionName}/runtime-management-config", Kind::NotYet),
    op("PutRuntimeManagementConfig", "PUT", "/2021-07-20/functions/{FunctionName}/runtime-management-config", Kind::NotYet),
    op("DeleteFunctionUrlConfig", "DELETE", "/2021-10-31/functions/{FunctionName}/url", Kind::NotYet),
    op("GetFunctionUrlConfig", "GET", "/2021-10-31/functions/{FunctionName}/url", Kind::NotYet),
    op("CreateFunctionUrlConfig", "POST", "/2021-10-31/functions/{FunctionName}/url", Kind::NotYet),
    op("UpdateFunctionUrlConfig", "PUT", "/2021-10-31/functions/{FunctionName}/url", Kind::NotYet),
    op("ListFunctionUrlConfigs", "GET", "/2021-10-31/functions/{FunctionName}/urls", Kind::NotYet),
    op("InvokeWithResponseStream", "POST", "/2021-11-15/functions/{FunctionName}/response-streaming-invocations", Kind::NotYet),
    op("GetFunctionRecursionConfig", "GET", "/2024-08-31/functions/{FunctionName}/recursion-config", Kind::NotYet),
    op("PutFunctionRecursionConfig", "PUT", "/2024-08-31/functions/{FunctionName}/recursion-config", Kind::NotYet),
    op("ListCapacityProviders", "GET", "/2025-11-30/capacity-providers", Kind::NotYet),
    op("CreateCapacityProvider", "POST", "/2025-11-30/capacity-providers", Kind::NotYet),
    op("DeleteCapacityProvider", "DELETE", "/2025-11-30/capacity-providers/{CapacityProviderName}", Kind::NotYet),
    op("GetCapacityProvider", "GET", "/2025-11-30/capacity-providers/{CapacityProviderName}", Kind::NotYet),
    op("UpdateCapacityProvider", "PUT", "/2025-11-30/capacity-providers/{CapacityProviderName}", Kind::NotYet),
    op("ListFunctionVersionsByCapacityProvider", "GET", "/2025-11-30/capacity-providers/{CapacityProviderName}/function-versions", Kind::NotYet),
    op("GetFunctionScalingConfig", "GET", "/2025-11-30/functions/{FunctionName}/function-scaling-config", Kind::NotYet),
    op("PutFunctionScalingConfig", "PUT", "/2025-11-30/functions/{FunctionName}/function-scaling-config", Kind::NotYet),
    op("SendDurableExecutionCallbackFailure", "POST", "/2025-12-01/durable-execution-callbacks/{CallbackId}/fail", Kind::NotYet),
    op("SendDurableExecutionCallbackHeartbeat", "POST", "/2025-12-01/durable-execution-callbacks/{CallbackId}/heartbeat", Kind::NotYet),
    op("SendDurableExecutionCallbackSuccess", "POST", "/2025-12-01/durable-execution-callbacks/{CallbackId}/succeed", Kind::NotYet),
    op("GetDurableExecution", "GET", "/2025-12-01/durable-executions/{DurableExecutionArn}", Kind::NotYet),
    op("CheckpointDurableExecution", "POST", "/2025-12-01/durable-executions/{DurableExecutionArn}/checkpoint", Kind::NotYet),
    op("GetDurableExecutionHistory", "GET", "/2025-12-01/durable-executions/{DurableExecutionArn}/history", Kind::NotYet),
    op("GetDurableExecutionState", "GET", "/2025-12-01/durable-executions/{DurableExecutionArn}/state", Kind::NotYet),
    op("StopDurableExecution", "POST", "/2025-12-01/durable-executions/{DurableExecutionArn}/stop", Kind::NotYet),
    op("ListDurableExecutionsByFunction", "GET", "/2025-12-01/functions/{FunctionName}/durable-executions", Kind::NotYet),
];

impl Operation {
    /// The decoded segment that stands for the template's parameter, if the request is this operation.
    fn matches<'a>(&self, method: &Method, path: &'a str, query: &str) -> Option<&'a str> {
        let (template, pair) = self.template.split_once('?').unwrap_or((self.template, ""));
        if self.method != method.as_str() || !(pair.is_empty() || query.split('&').any(|given| given == pair)) {
            return None;
        }
        let mut first = "";
        let mut segments = path.split('/');
        for wanted in template.split('/') {
            let given = segments.next()?;
            if wanted.starts_with('{') {
                if given.is_empty() {
                    return None;
                }
                if first.is_empty() {
                    first = given;
                }
            } else if wanted != given {
                return None;
            }
        }
        segments.next().is_none().then_some(first)
    }
}

/// Finds the operation of a request and reads the parameters of its path and query.
///
/// An operation that AWS has and this node does not is [`Error::NotSupported`] by name; no request is answered with a success
/// that means nothing.
pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Call, Error> {
    let query = query.unwrap_or("");
    let path = path.strip_suffix('/').unwrap_or(path);
    let found = OPERATIONS.iter().find_map(|operation| Some((operation, operation.matches(method, path, query)?)));
    let Some((operation, segment)) = found else {
        let path = path.chars().take(SHOWN_CHARS).collect();
        return Err(Error::UnknownOperation { method: method.clone(), path });
    };
    call(operation, segment, query)
}

fn call(operation: &Operation, segment: &str, query: &str) -> Result<Call, Error> {
    let function = || {
        let qualifier = parameter(query, "Qualifier")?;
        FunctionRef::parse(&decoded(segment, "functionName")?, qualifier.as_deref())
    };
    let resource = || resource(&decoded(segment, "resource")?);
    Ok(match operation.kind {
        Kind::Invoke => Call::Invoke(function()?),
        Kind::CreateFunction => Call::CreateFunction,
        Kind::UpdateFunctionCode => Call::UpdateFunctionCode(function()?),
        Kind::UpdateFunctionConfiguration => Call::UpdateFunctionConfiguration(function()?),
        Kind::GetFunction => Call::GetFunction(function()?),
        Kind::GetFunctionConfiguration => Call::GetFunctionConfiguration(function()?),
        Kind::ListFunctions => Call::ListFunctions(page(query)?),
        Kind::DeleteFunction => Call::DeleteFunction(function()?),
        Kind::TagResource => Call::TagResource(resource()?),
        Kind::UntagResource => Call::UntagResource { function: resource()?, keys: tag_keys(query)? },
        Kind::ListTags => Call::ListTags(resource()?),
        Kind::GetAccountSettings => Call::GetAccountSettings,
        Kind::GetFunctionCodeSigningConfig => Call::GetFunctionCodeSigningConfig(function()?),
        Kind::ListVersionsByFunction => Call::ListVersionsByFunction { function: function()?, page: page(query)? },
        Kind::GetFunctionConcurrency => Call::GetFunctionConcurrency(function()?),
        Kind::NotYet => return Err(Error::NotSupported { what: format!("the operation {}", operation.name) }),
    })
}

/// Whether a request is an invocation, from its path alone: what the front decides by, before anything is parsed.
#[must_use]
pub fn is_invocation(path: &str) -> bool {
    let rest = path.strip_prefix("/2015-03-31/functions/");
    rest.and_then(|rest| rest.split_once('/')).is_some_and(|(_, tail)| tail.trim_end_matches('/') == "invocations")
}

fn decoded<'a>(text: &'a str, member: &str) -> Result<Cow<'a, str>, Error> {
    percent_decode_str(text).decode_utf8().map_err(|_| Error::pattern(text, member, "valid UTF-8, percent-encoded"))
}

fn parameters<'a>(query: &'a str, wanted: &'static str) -> impl Iterator<Item = Result<Cow<'a, str>, Error>> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(name, _)| *name == wanted).map(move |(_, value)| decoded(value, wanted))
}

fn parameter<'a>(query: &'a str, wanted: &'static str) -> Result<Option<Cow<'a, str>>, Error> {
    parameters(query, wanted).next().transpose()
}

fn page(query: &str) -> Result<Page, Error> {
    let max_items = match parameter(query, "MaxItems")? {
        None => MAX_PAGE,
        Some(text) => {
            let number = text.parse::<usize>().ok().filter(|number| (1..=10_000).contains(number));
            let number = number.ok_or_else(|| {
                let constraint = "be a number from 1 to 10000";
                Error::Validation { violations: vec![super::error::violation(&text, "maxItems", constraint)] }
            })?;
            number.min(MAX_PAGE)
        }
    };
    if let Some(version) = parameter(query, "FunctionVersion")?
        && version != "ALL"
    {
        return Err(Error::Validation {
            violations: vec![super::error::violation(&version, "functionVersion", "satisfy enum value set: [ALL]")],
        });
    }
    let marker = parameter(query, "Marker")?.filter(|marker| !marker.is_empty()).map(Cow::into_owned);
    Ok(Page { marker, max_items })
}

/// Tags hang on full ARNs of functions.
fn resource(arn: &str) -> Result<FunctionRef, Error> {
    if !arn.starts_with("arn:") {
        return Err(Error::pattern(
            arn,
            "resource",
            "arn:(aws[a-zA-Z-]*):lambda:[a-z]{2}(-gov)?-[a-z]+-\\d{1}:\\d{12}:function:[a-zA-Z0-9-_]+",
        ));
    }
    if [":code-signing-config:", ":event-source-mapping:", ":capacity-provider:"].iter().any(|kind| arn.contains(kind)) {
        return Err(Error::NotSupported { what: "a tag on anything but a function".to_owned() });
    }
    FunctionRef::parse(arn, None)
}

fn tag_keys(query: &str) -> Result<Vec<String>, Error> {
    let keys: Vec<String> = parameters(query, "tagKeys").map(|key| key.map(Cow::into_owned)).collect::<Result<_, _>>()?;
    match keys.len() {
        0 => Err(Error::Validation {
            violations: vec!["Value null at 'tagKeys' failed to satisfy constraint: Member must not be null".to_owned()],
        }),
        1..=MAX_TAG_KEYS => Ok(keys),
        more => Err(Error::InvalidParameterValue { message: format!("{more} tag keys, {MAX_TAG_KEYS} are allowed") }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lambda::Qualifier;

    fn function(name: &str) -> FunctionRef {
        FunctionRef { name: name.parse().unwrap(), qualifier: Qualifier::Unqualified }
    }

    fn check(request: &str, call: Call) {
        let (method, target) = request.split_once(' ').unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        assert_eq!(parse(&method.parse().unwrap(), path, Some(query)), Ok(call), "{request}");
    }

    #[test]
    fn requests_are_read_as_their_operations() {
        let page = |marker: Option<&str>, max_items| Page { marker: marker.map(str::to_owned), max_items };
        check("POST /2015-03-31/functions/hello/invocations", Call::Invoke(function("hello")));
        check("POST /2015-03-31/functions/hello/invocations/", Call::Invoke(function("hello")));
        let latest = FunctionRef { qualifier: Qualifier::Latest, ..function("hello") };
        let arn = "arn%3Aaws%3Alambda%3Aeu-west-1%3A000000000000%3Afunction%3Ahello";
        check(&format!("POST /2015-03-31/functions/{arn}%3A%24LATEST/invocations"), Call::Invoke(latest.clone()));
        check("POST /2015-03-31/functions/hello/invocations?Qualifier=%24LATEST", Call::Invoke(latest));
        check("POST /2015-03-31/functions", Call::CreateFunction);
        check("POST /2015-03-31/functions/", Call::CreateFunction);
        check("GET /2015-03-31/functions/?MaxItems=3&Marker=a%2Fb", Call::ListFunctions(page(Some("a/b"), 3)));
        check("GET /2015-03-31/functions?FunctionVersion=ALL", Call::ListFunctions(page(None, MAX_PAGE)));
        check("GET /2015-03-31/functions/hello", Call::GetFunction(function("hello")));
        check("DELETE /2015-03-31/functions/hello", Call::DeleteFunction(function("hello")));
        check(&format!("GET /2017-03-31/tags/{arn}"), Call::ListTags(function("hello")));
        check(
            &format!("DELETE /2017-03-31/tags/{arn}?tagKeys=takt%3Arate&tagKeys=a%20b"),
            Call::UntagResource { function: function("hello"), keys: vec!["takt:rate".to_owned(), "a b".to_owned()] },
        );
        check("GET /2016-08-19/account-settings", Call::GetAccountSettings);
    }

    #[test]
    fn what_is_missing_is_named() {
        let check = |request: &str, code: &str, part: &str| {
            let (method, target) = request.split_once(' ').unwrap();
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let error = parse(&method.parse().unwrap(), path, Some(query)).unwrap_err();
            assert_eq!(error.code(), code, "{request}");
            assert!(error.to_string().contains(part), "{error}");
        };
        check("POST /2015-03-31/functions/hello/versions", "NotImplementedException", "PublishVersion");
        check("POST /2014-11-13/functions/hello/invoke-async/", "NotImplementedException", "InvokeAsync");
        let stream = "POST /2021-11-15/functions/hello/response-streaming-invocations";
        check(stream, "NotImplementedException", "InvokeWithResponseStream");
        check("GET /2018-10-31/layers?find=LayerVersion&Arn=x", "NotImplementedException", "GetLayerVersionByArn");
        check("GET /2018-10-31/layers", "NotImplementedException", "ListLayers");
        check("PATCH /2015-03-31/functions/hello", "UnknownOperationException", "PATCH /2015-03-31/functions/hello");
        check("GET /2015-03-31/functions//invocations", "UnknownOperationException", "");
        check("GET /2015-03-31/functions/a/b/c/d", "UnknownOperationException", "");
        check("GET /2015-03-31/functions/%FF", "ValidationException", "");
        check("GET /2015-03-31/functions/a%2Fb", "ValidationException", "functionName");
        check("GET /2015-03-31/functions?MaxItems=0", "ValidationException", "maxItems");
        check(
            "DELETE /2017-03-31/tags/arn%3Aaws%3Alambda%3Aeu-west-1%3A000000000000%3Afunction%3Ah",
            "ValidationException",
            "tagKeys",
        );
        check("GET /2017-03-31/tags/hello", "ValidationException", "resource");
    }

    #[test]
    fn an_invocation_is_known_by_its_path() {
        assert!(is_invocation("/2015-03-31/functions/hello/invocations"));
        assert!(!is_invocation("/2015-03-31/functions/hello/code"));
        assert!(!is_invocation("/2015-03-31/functions/hello"));
    }

    proptest! {
        #[test]
        fn no_target_makes_the_parser_panic(path in "/(2015-03-31/functions/)?[!-~]{0,60}", query in "[!-~]{0,60}", method in 0_usize..4) {
            let method = [Method::GET, Method::POST, Method::PUT, Method::DELETE][method].clone();
            let _ = parse(&method, &path, Some(&query));
        }
    }
}
