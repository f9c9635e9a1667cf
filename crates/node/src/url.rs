//! Functions by URL: `/fn/NAME/rest?query` as a function URL event (format 2.0), and results as HTTP answers.

/// AWS's text for a caller who may not call a function by its URL.
pub const FORBIDDEN: &str = "Forbidden. For troubleshooting Function URL authorization issues, see: https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html";
