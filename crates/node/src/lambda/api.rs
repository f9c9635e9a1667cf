//! Bodies of the function-management operations: what clients ask, and what they are answered.
//!
//! A member that this node cannot honour is refused by its name, unless it only states the default; nothing a client sends is
//! dropped in silence. A guarantee comes and goes through tags: `takt:rate=30/s`, `takt:deadline=100ms` and so on.

mod describe;
mod failure;
mod request;
mod tags;

pub use describe::{Account, Described, account_settings, concurrency, json_response, list, no_content, signing_config};
pub use request::{
    Create, DryRun, MAX_CREATE_BYTES, MAX_ENVIRONMENT_BYTES, MAX_ZIP_BYTES, UpdateCode, UpdateConfiguration, create,
    read_revision, revision_id, tag_resource, update_code, update_configuration,
};
pub use tags::{MAX_TAGS, TAG_PREFIX, add as add_tags, of as tags_of, remove as remove_tags};
