//! AWS Lambda's function management, at its own paths, on top of the control plane.
//!
//! Bodies and answers are [`crate::lambda`]'s. Create and update are answered as soon as they are admitted and kept, and
//! truthfully as `Pending` or `InProgress`; clients' waiters then poll. A refusal by admission is an
//! `InvalidParameterValueException` with the whole explanation. Everything that is no path of `/v1` ends here.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use model::{FunctionName, FunctionSpec};

use super::{MAX_PACKAGE_REQUEST_BYTES, MAX_REQUEST_BYTES, Shared};
use crate::control::{self, Answer, Change, Deploy, Edit};
use crate::lambda::api::{self, Account, Described, DryRun};
use crate::lambda::path::{self, Call, Page};
use crate::lambda::{Error, FunctionRef, ThrottleReason};
use crate::registry::Function;

type Answered = Result<http::Response<Bytes>, Error>;

/// Answers whatever has no route of its own.
pub(super) async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    // AWS's paths start with the date of an API version.
    if !path.starts_with("/20") {
        return super::Error::NoPath { path: path.chars().take(200).collect() }.into_response();
    }
    let answered = match path::parse(&parts.method, path, parts.uri.query()) {
        Ok(call) => shared.call(call, body).await,
        Err(error) => Err(error),
    };
    let (parts, body) = answered.unwrap_or_else(|error| error.response()).into_parts();
    Response::from_parts(parts, Body::from(body))
}

impl Shared {
    async fn call(&self, call: Call, body: Body) -> Answered {
        match call {
            Call::Invoke(_) => Err(Error::Service { message: "invocations are answered by the front".to_owned() }),
            Call::CreateFunction => self.create(body).await,
            Call::UpdateFunctionCode(function) => self.update_code(&function, body).await,
            Call::UpdateFunctionConfiguration(function) => self.update_configuration(&function, body).await,
            Call::DeleteFunction(function) => self.delete(&function).await,
            Call::TagResource(function) => self.tag(&function, body).await,
            Call::UntagResource { function, keys } => self.untag(&function, keys).await,
            read @ (Call::GetFunction(_)
            | Call::GetFunctionConfiguration(_)
            | Call::ListFunctions(_)
            | Call::ListTags(_)
            | Call::GetAccountSettings
            | Call::GetFunctionCodeSigningConfig(_)
            | Call::ListVersionsByFunction { .. }
            | Call::GetFunctionConcurrency(_)) => self.read(read),
        }
    }

    fn read(&self, call: Call) -> Answered {
        let body = match call {
            Call::GetFunction(function) => {
                let function = self.find(function.serving(&self.home)?)?;
                let name = &function.current.spec.name;
                Described::new(&self.home, &function).with_code(&format!("{}/v1/functions/{name}/code", self.url))
            }
            Call::GetFunctionConfiguration(function) => {
                let function = self.find(function.serving(&self.home)?)?;
                Described::new(&self.home, &function).configuration()
            }
            Call::ListFunctions(page) => self.list(&page),
            Call::ListTags(function) => {
                let function = self.find(function.unqualified()?)?;
                Described::new(&self.home, &function).list_tags()
            }
            Call::GetAccountSettings => api::account_settings(&self.account()),
            Call::GetFunctionCodeSigningConfig(function) => {
                api::signing_config(&self.find(function.unqualified()?)?.current.spec.name)
            }
            Call::ListVersionsByFunction { function, page: _ } => {
                let function = self.find(function.unqualified()?)?;
                Described::new(&self.home, &function).versions()
            }
            Call::GetFunctionConcurrency(function) => {
                self.find(function.unqualified()?)?;
                api::concurrency()
            }
            change @ (Call::Invoke(_)
            | Call::CreateFunction
            | Call::UpdateFunctionCode(_)
            | Call::UpdateFunctionConfiguration(_)
            | Call::DeleteFunction(_)
            | Call::TagResource(_)
            | Call::UntagResource { .. }) => {
                return Err(Error::Service { message: format!("{change:?} is not a question") });
            }
        };
        Ok(api::json_response(StatusCode::OK, &body))
    }

    fn list(&self, page: &Page) -> serde_json::Value {
        let view = self.control.view();
        api::list(&self.home, view.functions.values().map(AsRef::as_ref), page)
    }

    fn account(&self) -> Account {
        let view = self.control.view();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        Account {
            code_limit_bytes: count(crate::registry::MAX_FUNCTIONS).saturating_mul(count(api::MAX_ZIP_BYTES)),
            code_bytes: view.functions.values().map(|function| function.current.code.bytes).sum(),
            functions: count(view.functions.len()),
            instances: view.book.capacity().instances,
            unreserved_instances: view.book.remaining().instances,
        }
    }

    fn find(&self, name: &FunctionName) -> Result<Arc<Function>, Error> {
        self.control.view().functions.get(name).cloned().ok_or_else(|| self.not_found(name))
    }

    fn not_found(&self, name: &FunctionName) -> Error {
        Error::ResourceNotFound { message: format!("Function not found: {}", self.home.arn(name)) }
    }

    async fn create(&self, body: Body) -> Answered {
        let _room = self.room()?;
        let create = api::create(&read(body, MAX_PACKAGE_REQUEST_BYTES, "CreateFunction").await?)?;
        let name = create.spec.name.clone();
        let change = Change::Create { spec: Box::new(create.spec), package: Bytes::from(create.package) };
        let function = self.deploy(Deploy { name, change, revision: None, answer: Answer::WhenAdmitted }).await?;
        Ok(api::json_response(StatusCode::CREATED, &Described::new(&self.home, &function).configuration()))
    }

    async fn update_code(&self, function: &FunctionRef, body: Body) -> Answered {
        let _room = self.room()?;
        let name = function.serving(&self.home)?;
        let update = api::update_code(&read(body, MAX_PACKAGE_REQUEST_BYTES, "UpdateFunctionCode").await?)?;
        let known = self.find(name)?;
        let function = match update.dry_run {
            DryRun::Yes if update.revision.is_some_and(|wanted| wanted != known.revision) => {
                return Err(Error::stale_revision());
            }
            DryRun::Yes => known,
            DryRun::No => {
                let change = Change::Code { package: Bytes::from(update.package) };
                self.deploy(Deploy { name: name.clone(), change, revision: update.revision, answer: Answer::WhenAdmitted })
                    .await?
            }
        };
        Ok(api::json_response(StatusCode::OK, &Described::new(&self.home, &function).configuration()))
    }

    async fn update_configuration(&self, function: &FunctionRef, body: Body) -> Answered {
        let name = function.serving(&self.home)?;
        let update = api::update_configuration(&read(body, MAX_REQUEST_BYTES, "UpdateFunctionConfiguration").await?)?;
        let revision = update.revision;
        let function = self.edit(name, revision, Answer::WhenAdmitted, move |spec| update.apply(spec)).await?;
        Ok(api::json_response(StatusCode::OK, &Described::new(&self.home, &function).configuration()))
    }

    async fn delete(&self, function: &FunctionRef) -> Answered {
        let name = function.unqualified()?;
        self.control.delete(name, None).await.map_err(|error| Error::from_control(&error, &self.home))?;
        self.logs.forget(name);
        Ok(api::no_content())
    }

    async fn tag(&self, function: &FunctionRef, body: Body) -> Answered {
        let tags = api::tag_resource(&read(body, MAX_REQUEST_BYTES, "TagResource").await?)?;
        let edit = move |spec: &mut FunctionSpec| api::add_tags(spec, &tags);
        self.edit(function.unqualified()?, None, Answer::WhenServing, edit).await?;
        Ok(api::no_content())
    }

    async fn untag(&self, function: &FunctionRef, keys: Vec<String>) -> Answered {
        let edit = move |spec: &mut FunctionSpec| api::remove_tags(spec, &keys);
        self.edit(function.unqualified()?, None, Answer::WhenServing, edit).await?;
        Ok(api::no_content())
    }

    /// Changes a specification. It is tried on what is published first, for an error in AWS's words.
    async fn edit(
        &self,
        name: &FunctionName,
        revision: Option<u64>,
        answer: Answer,
        edit: impl Fn(&mut FunctionSpec) -> Result<(), Error> + Send + 'static,
    ) -> Result<Arc<Function>, Error> {
        edit(&mut self.find(name)?.current.spec.clone())?;
        let function = name.clone();
        let edit: Edit = Box::new(move |spec| {
            edit(spec).map_err(|error| control::Error::Invalid { function, key: "request", reason: error.to_string() })
        });
        self.deploy(Deploy { name: name.clone(), change: Change::Edit(edit), revision, answer }).await
    }

    async fn deploy(&self, deploy: Deploy) -> Result<Arc<Function>, Error> {
        self.control.deploy(deploy).await.map_err(|error| Error::from_control(&error, &self.home))
    }

    fn room(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
        self.package().map_err(|error| Error::TooManyRequests {
            reason: ThrottleReason::CallerRate,
            message: error.to_string(),
            retry_after: Some(std::time::Duration::from_secs(1)),
        })
    }
}

async fn read(body: Body, limit: usize, operation: &'static str) -> Result<Bytes, Error> {
    super::read_body(body, limit).await.map_err(|_| Error::RequestTooLarge { limit, operation })
}
