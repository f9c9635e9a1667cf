//! `takt serve`: runs a node in this process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use model::Level;
use node::calibrate::Classes;
use node::serve::{self, Options, Ready};
use serde_json::json;

use crate::args::{NodeArgs, ServeArgs};
use crate::dev::Dev;
use crate::exit::Exit;
use crate::home;
use crate::output::Format;

/// Runs the node until it is told to stop.
pub fn run(args: &ServeArgs, format: Format) -> Result<Exit> {
    let data_dir = home::data_dir(args.data_dir.clone()).context("no data directory: state one with --data-dir, or set HOME")?;
    let options = Options {
        listen: args.listen,
        data_dir: data_dir.clone(),
        memory: args.memory,
        hosts: args.hosts.clone(),
        program: std::env::current_exe().context("cannot find this program")?,
        launcher_arguments: vec!["internal".to_owned(), "launcher".to_owned()],
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut watching = None;
    let mut trouble = None;
    let served = serve::serve(&options, |ready| {
        say(ready, format);
        if let Some(folder) = &args.dev {
            match watch(folder, &data_dir, ready, (format, Arc::clone(&stop))) {
                Ok(thread) => watching = Some(thread),
                Err(error) => trouble = Some(error),
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    if let Some(thread) = watching {
        thread.join().map_err(|_| anyhow::anyhow!("the watch over the function folder panicked"))??;
    }
    served?;
    match trouble {
        None => Ok(Exit::Ok),
        Some(error) => Err(error),
    }
}

fn watch(
    folder: &Path,
    data_dir: &Path,
    ready: &Ready,
    (format, stop): (Format, Arc<AtomicBool>),
) -> Result<JoinHandle<Result<()>>> {
    let node = NodeArgs { url: format!("http://{}", ready.address), token: None, data_dir: Some(data_dir.to_owned()) };
    let dev = Dev::new(folder, node, format)?;
    let thread = std::thread::Builder::new().name("dev".to_owned()).spawn(move || dev.run(&stop));
    thread.context("cannot start the watch over the function folder")
}

/// One line that it is ready, after one for everything that this machine and user do not give.
fn say(ready: &Ready, format: Format) {
    let measured = &ready.measured;
    let missing = ready.protections.iter().filter_map(|protection| Some((protection, protection.missing.as_ref()?)));
    match format {
        Format::Json => {
            let missing = missing.map(|(protection, missing)| {
                json!({
                    "name": protection.name,
                    "reason": missing.reason,
                    "consequence": missing.consequence,
                    "remedy": missing.remedy,
                })
            });
            let measured_with = match measured.classes {
                Classes::RealTime => Level::Hard,
                Classes::Ordinary => Level::Soft,
            };
            let line = json!({
                "ready": true,
                "url": format!("http://{}", ready.address),
                "level": ready.level,
                "measured_level": measured_with,
                "tolerance_us": micros(measured.tolerance),
                "worst_dispatch_us": micros(measured.worst),
                "front_cost_us": micros(measured.front.invocation),
                "accept_cost_us": micros(measured.front.accept),
                "long_request_cost_us": micros(measured.front.long_request),
                "long_result_cost_us": micros(measured.front.long_result),
                "suspended": ready.suspended,
                "missing": missing.collect::<Vec<_>>(),
            });
            println!("{line}");
        }
        Format::Human => {
            let lines: Vec<String> = missing.map(|(protection, _)| format!("  {protection}")).collect();
            if !lines.is_empty() {
                eprintln!("note: this machine does not give this node (`takt top` and GET /v1/node say so too):");
                eprintln!("{}", lines.join("\n"));
            }
            if 0 < ready.suspended {
                eprintln!(
                    "note: {} guarantees no longer fit this node and are suspended; `takt list` names them",
                    ready.suspended
                );
            }
            let level = match ready.level {
                Level::Hard => "hard",
                Level::Soft => "soft",
            };
            println!(
                "takt is ready at http://{} (guarantees: {level}, T = {})",
                ready.address,
                model::brief_duration(measured.tolerance)
            );
        }
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
