//! A road camera watched by functions: cheap watching at a low rate, full-rate analysis while something happens.

pub(crate) mod background;
pub(crate) mod camera;
pub(crate) mod client;
pub(crate) mod detect;
pub(crate) mod foreground;
pub(crate) mod function;
pub(crate) mod gate;
pub(crate) mod geometry;
pub(crate) mod num;
pub(crate) mod picture;
pub(crate) mod program;
pub(crate) mod report;
pub(crate) mod scene;
pub(crate) mod score;
mod show;
pub(crate) mod terms;
pub(crate) mod track;
pub(crate) mod video;
pub(crate) mod watch;

#[cfg(test)]
mod tests;

pub(crate) use show::run;

/// Serves invocations as one of the functions until the node is gone.
pub(crate) fn become_function(handler: &str) -> anyhow::Result<()> {
    Ok(function::main(handler.parse()?)?)
}
