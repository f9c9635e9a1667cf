//! What can be typed. Help texts here are the source of the command-line reference.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use model::{Burst, FunctionName, Rate, RateClassName};

/// A function platform that keeps a promised invocation rate.
#[derive(Debug, Parser)]
#[command(name = "takt", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Print JSON instead of text.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(ServeArgs),
    New(NewArgs),
    Deploy(DeployArgs),
    Invoke(InvokeArgs),
    List(ListArgs),
    Logs(LogsArgs),
    Delete(DeleteArgs),
    Guarantee(GuaranteeArgs),
    Top(TopArgs),
    Audit(AuditArgs),
    Backup(BackupArgs),
    Env(EnvArgs),
    Keys(KeysArgs),
    Demo(DemoArgs),
    #[command(hide = true)]
    Internal(InternalArgs),
}

/// Where the node is and how to be let in.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// Address of the node.
    #[arg(long, env = "TAKT_URL", default_value = crate::home::DEFAULT_URL, value_name = "URL")]
    pub url: String,

    /// Bearer token of the node; without it, the one in the data directory is used.
    #[arg(long, env = "TAKT_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,

    /// The node's data directory, where its keys lie [default: $XDG_DATA_HOME/takt].
    #[arg(long, env = "TAKT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Run a node until it is told to stop (Ctrl-C or SIGTERM); running requests may end first.
///
/// It prints one line with its address when it is ready.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS")]
    pub listen: std::net::SocketAddr,

    /// Directory for everything the node keeps [default: $XDG_DATA_HOME/takt].
    #[arg(long, env = "TAKT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Memory that guaranteed functions may reserve together, such as 4GB [default: 60 % of the machine's].
    #[arg(long, value_parser = bytes_of, value_name = "SIZE")]
    pub memory: Option<u64>,

    /// Another host name under which clients may ask; repeatable.
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,

    /// Deploy this function folder, or every function folder in it, and again whenever its files change.
    #[arg(long, value_name = "DIR")]
    pub dev: Option<PathBuf>,
}

/// Bytes of a size in MB or GB (powers of 1,024, as everywhere).
fn bytes_of(text: &str) -> Result<u64, String> {
    let units = [("MB", 20), ("GB", 30)];
    let parsed = units.iter().find_map(|(unit, shift)| {
        let number: u64 = text.trim().strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(1 << shift)
    });
    parsed.filter(|bytes| 0 < *bytes).ok_or_else(|| "write a whole number with MB or GB, such as 4GB".to_owned())
}

/// Write a function folder from a template: code, takt.toml and a commented guarantee.
#[derive(Args, Debug)]
pub struct NewArgs {
    /// Name of the function and of the folder to make.
    pub name: FunctionName,

    /// What the folder starts from.
    #[arg(long, value_enum, default_value_t = Template::Python)]
    pub template: Template,

    /// The folder the new one is made in.
    #[arg(long = "in", value_name = "DIR", default_value = ".")]
    pub parent: PathBuf,
}

/// What `takt new` can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// A Python handler.
    Python,
    /// A Node.js handler.
    Nodejs,
    /// A shell script that speaks the Runtime API with curl.
    ProvidedSh,
    /// A Rust program on the `lambda_runtime` crate.
    Rust,
}

/// Install the dependencies of a function folder, upload it and ask for its guarantee.
///
/// Exits with 3 when admission refuses; nothing is changed then.
#[derive(Args, Debug)]
pub struct DeployArgs {
    /// The function folder; it holds a takt.toml.
    #[arg(value_name = "DIR", default_value = ".")]
    pub folder: PathBuf,

    /// Name to deploy under, in place of the file's.
    #[arg(long)]
    pub name: Option<FunctionName>,

    /// Memory per instance, in place of the file's, such as 128MB.
    #[arg(long)]
    pub memory: Option<String>,

    #[command(flatten)]
    pub terms: TermArgs,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// The terms of a guarantee; each takes the place of the key of the same name in `[guarantee]`.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Guarantee")]
pub struct TermArgs {
    /// Guaranteed invocations per time, such as 30/s or 5/min.
    #[arg(long)]
    pub rate: Option<String>,

    /// How many may come at once.
    #[arg(long)]
    pub burst: Option<String>,

    /// The shared rate it takes part in, in place of a rate of its own.
    #[arg(long)]
    pub rate_class: Option<String>,

    /// Bound on an invocation's own time, such as 20ms.
    #[arg(long)]
    pub max_run_time: Option<String>,

    /// Share of a core an invocation uses at most, 0.001 to 1.
    #[arg(long)]
    pub cpu: Option<String>,

    /// Promised start delay, such as 50ms.
    #[arg(long)]
    pub start_within: Option<String>,

    /// Promised end, counted from arrival, such as 100ms.
    #[arg(long)]
    pub deadline: Option<String>,

    /// What becomes of arrivals beyond the rate: best-effort, queue or reject.
    #[arg(long)]
    pub overflow: Option<String>,

    /// How many may wait, with --overflow queue.
    #[arg(long)]
    pub queue_limit: Option<String>,

    /// The level that is insisted on: any or hard.
    #[arg(long)]
    pub require: Option<String>,

    /// What becomes of an invocation beyond its bound: kill or demote.
    #[arg(long)]
    pub on_overrun: Option<String>,

    /// The longest lead of a pre-invocation, such as 200ms.
    #[arg(long)]
    pub lead: Option<String>,
}

impl TermArgs {
    /// The terms that were given, by the key they stand for.
    #[must_use]
    pub fn pairs(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("rate", &self.rate),
            ("burst", &self.burst),
            ("rate_class", &self.rate_class),
            ("max_run_time", &self.max_run_time),
            ("cpu", &self.cpu),
            ("start_within", &self.start_within),
            ("deadline", &self.deadline),
            ("overflow", &self.overflow),
            ("queue_limit", &self.queue_limit),
            ("require", &self.require),
            ("on_overrun", &self.on_overrun),
            ("lead", &self.lead),
        ];
        all.into_iter().filter_map(|(key, value)| value.as_deref().map(|value| (key, value))).collect()
    }
}

/// Invoke a function once, or at a rate for a while (an open-loop load generator).
///
/// With --rate each invocation has an instant at which it is meant to be sent, whatever became of the ones before it, and
/// its latency counts from that instant.
#[derive(Args, Debug)]
pub struct InvokeArgs {
    /// The function.
    pub name: FunctionName,

    /// The event, as JSON.
    #[arg(long, short, conflicts_with = "file", value_name = "JSON")]
    pub data: Option<String>,

    /// A file that holds the event; - is standard input.
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Print the last lines the function logged, to standard error.
    #[arg(long, conflicts_with = "rate")]
    pub log: bool,

    #[command(flatten)]
    pub load: LoadArgs,

    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Invoke at this rate, such as 50/s.
    #[arg(long)]
    pub rate: Option<Rate>,

    /// For how long.
    #[arg(long = "for", value_parser = model::parse_duration, default_value = "10s", requires = "rate", value_name = "DURATION")]
    pub length: Duration,

    /// How the instants are spread.
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Even, requires = "rate")]
    pub arrivals: ArrivalsArg,

    /// Seed of the Poisson arrivals.
    #[arg(long, default_value_t = 1, requires = "rate")]
    pub seed: u64,

    /// How many connections may be open at once; more are opened as they are needed.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..), requires = "rate")]
    pub connections: u16,

    /// An answer later than this is not on time; by default the deadline of the function's guarantee.
    #[arg(long, value_parser = model::parse_duration, requires = "rate", value_name = "DURATION")]
    pub deadline: Option<Duration>,

    /// Run the generator at real-time class, so that load on the machine does not delay it.
    #[arg(long, requires = "rate")]
    pub realtime: bool,

    /// Write one row per invocation.
    #[arg(long, requires = "rate", value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArrivalsArg {
    /// One every 1/rate.
    Even,
    /// Independent of each other, the rate on average.
    Poisson,
}

/// List the functions of a node and what is promised for them.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Print what a function's instances wrote.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The function.
    pub name: FunctionName,

    /// Go on with new lines until interrupted.
    #[arg(long, short)]
    pub follow: bool,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// Delete a function and give its reservation back.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The function.
    pub name: FunctionName,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// Show, set, explain or withdraw a function's guarantee.
#[derive(Args, Debug)]
pub struct GuaranteeArgs {
    #[command(subcommand)]
    pub verb: GuaranteeVerb,
}

#[derive(Debug, Subcommand)]
pub enum GuaranteeVerb {
    /// What is promised, with the numbers admission found.
    Show(OneFunctionArgs),
    /// Ask for a guarantee with these terms; terms that are not given take their defaults.
    ///
    /// Exits with 3 when admission refuses; what was promised before stays.
    Set(Box<SetGuaranteeArgs>),
    /// What bounds the guarantee, and what would have to change for a larger one.
    Explain(OneFunctionArgs),
    /// Go back to best effort.
    Withdraw(OneFunctionArgs),
    /// Rates that several functions share.
    Class(ClassArgs),
}

#[derive(Args, Debug)]
pub struct ClassArgs {
    #[command(subcommand)]
    pub verb: ClassVerb,
}

#[derive(Debug, Subcommand)]
pub enum ClassVerb {
    /// Make a rate class, or change one that no function uses.
    Set(SetClassArgs),
    /// The rate classes of the node.
    Show(ShowClassesArgs),
    /// Delete a rate class that no function uses.
    Delete(DeleteClassArgs),
}

#[derive(Args, Debug)]
pub struct SetClassArgs {
    /// The rate class.
    pub name: RateClassName,

    /// Invocations per time that its functions may be invoked together, such as 30/s.
    #[arg(long)]
    pub rate: Rate,

    /// How many may come at once.
    #[arg(long, default_value = "1")]
    pub burst: Burst,

    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Args, Debug)]
pub struct ShowClassesArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Args, Debug)]
pub struct DeleteClassArgs {
    /// The rate class.
    pub name: RateClassName,

    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Args, Debug)]
pub struct OneFunctionArgs {
    /// The function.
    pub name: FunctionName,

    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Args, Debug)]
pub struct SetGuaranteeArgs {
    /// The function.
    pub name: FunctionName,

    #[command(flatten)]
    pub terms: TermArgs,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// Watch a node: its functions, their rates and start delays beside what is promised. Leave with q.
///
/// With --json, or where standard output is no terminal, one look is printed.
#[derive(Args, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Recompute from the records alone whether a node kept its promises.
///
/// Exits with 0 only when every promise was kept and the records prove it, else with 1.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// A segment of evidence, a folder of them, a data directory or a backup [default: $XDG_DATA_HOME/takt].
    #[arg(env = "TAKT_DATA_DIR", value_name = "FILE|DIR")]
    pub path: Option<PathBuf>,
}

/// Copy what a node must not lose: functions, code and evidence; keys are not part of it.
#[derive(Args, Debug)]
pub struct BackupArgs {
    #[command(subcommand)]
    pub verb: BackupVerb,
}

#[derive(Debug, Subcommand)]
pub enum BackupVerb {
    /// Have a running node copy everything into a new folder on its machine.
    Make(MakeBackupArgs),
    /// Say what a backup holds.
    Inspect(InspectBackupArgs),
    /// Make a data directory from a backup, for a node to be started on.
    Restore(RestoreBackupArgs),
}

#[derive(Args, Debug)]
pub struct MakeBackupArgs {
    /// The folder to make, outside of the data directory.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Args, Debug)]
pub struct InspectBackupArgs {
    /// The backup.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

#[derive(Args, Debug)]
pub struct RestoreBackupArgs {
    /// The backup.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// The data directory to make; it must not exist.
    #[arg(value_name = "DATA_DIR")]
    pub data_dir: PathBuf,
}

/// Print the variables that make AWS clients talk to a node: eval "$(takt env)".
#[derive(Args, Debug)]
pub struct EnvArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Change the keys that open a node.
#[derive(Args, Debug)]
pub struct KeysArgs {
    #[command(subcommand)]
    pub verb: KeysVerb,
}

#[derive(Debug, Subcommand)]
pub enum KeysVerb {
    /// Replace access key, secret and token of a running node, and print the new ones: eval "$(takt keys rotate)".
    ///
    /// From then on the old ones open nothing. Functions, guarantees and what runs are not touched.
    Rotate(RotateKeysArgs),
}

#[derive(Args, Debug)]
pub struct RotateKeysArgs {
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Show what a guarantee is worth, on a node of its own that is gone afterwards.
#[derive(Args, Debug)]
pub struct DemoArgs {
    #[command(subcommand)]
    pub which: Demo,
}

#[derive(Debug, Subcommand)]
pub enum Demo {
    Traffic(TrafficArgs),
}

/// A road camera watched by two functions: alone, beside neighbours that flood the machine, and so without a guarantee.
///
/// One function looks twice a second; while something happens on the road, every picture goes to a second one that detects
/// and tracks, with 100 ms for each. The demonstration starts a node of its own, deploys both, shows the same clip three
/// times, prints what was seen and what was on time, and writes a report with plots.
#[derive(Args, Debug)]
pub struct TrafficArgs {
    /// A motion JPEG file or http:// stream in place of the generated highway.
    #[arg(long, value_name = "SOURCE")]
    pub video: Option<String>,

    /// Length of the clip, 10 to 600; of a video at most so much is taken.
    #[arg(long, value_name = "N", default_value_t = 28, value_parser = clap::value_parser!(u32).range(10..=600))]
    pub seconds: u32,

    /// Pictures per second of the video.
    #[arg(long, value_name = "N", default_value_t = 25, requires = "video", value_parser = clap::value_parser!(u32).range(5..=50))]
    pub fps: u32,

    /// What the generated highway is made from.
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub seed: u64,

    /// Tenants that flood best-effort work, 1 to 96. By default 16 for each core, but 32 to 96.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=96))]
    pub neighbours: Option<u16>,

    /// Where the report is written.
    #[arg(long, value_name = "FILE.html", default_value = "takt-traffic.html")]
    pub report: PathBuf,

    /// Also write the plot of start times as a picture of its own.
    #[arg(long, value_name = "FILE.svg")]
    pub picture: Option<PathBuf>,
}

/// What takt starts itself for.
#[derive(Args, Debug)]
pub struct InternalArgs {
    #[command(subcommand)]
    pub role: InternalRole,
}

#[derive(Debug, Subcommand)]
pub enum InternalRole {
    /// Start instances for the node that started this process.
    Launcher,
    /// Run a node that ends when the process that started it does.
    Node(ServeArgs),
    /// Be an instance of a demonstration's function.
    Function {
        /// Which one: watch, detect or burn.
        role: String,
    },
    /// Flood functions of a node until standard input ends, then say what came of it.
    Neighbour(NeighbourArgs),
    /// Print the command-line reference.
    Docs,
    /// Print the description of `/v1`.
    Openapi,
}

#[derive(Args, Debug)]
pub struct NeighbourArgs {
    /// The functions.
    #[arg(required = true, num_args = 1..=96)]
    pub names: Vec<FunctionName>,

    /// The event of every invocation.
    #[arg(long, value_name = "JSON")]
    pub data: String,

    /// Connections that each ask again as soon as they are answered, over all functions.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,

    /// Beside them, invocations of each function at this rate whatever becomes of the ones before.
    #[arg(long)]
    pub rate: Rate,

    #[command(flatten)]
    pub node: NodeArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("takt").chain(words.iter().copied()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn terms_are_given_as_flags_of_the_keys_names() {
        let cli = parse(&["deploy", "hello", "--rate", "30/s", "--max-run-time", "20ms"]).unwrap();
        let Command::Deploy(args) = cli.command else { panic!("deploy was typed") };
        assert_eq!(args.terms.pairs(), [("rate", "30/s"), ("max_run_time", "20ms")]);
    }

    #[test]
    fn every_term_has_its_flag() {
        let mut words = vec!["guarantee".to_owned(), "set".to_owned(), "hello".to_owned()];
        for key in model::Terms::KEYS {
            words.extend([format!("--{}", key.replace('_', "-")), "1".to_owned()]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Command::Guarantee(GuaranteeArgs { verb: GuaranteeVerb::Set(args) }) = parse(&words).unwrap().command else {
            panic!("guarantee set was typed")
        };
        let keys: Vec<&str> = args.terms.pairs().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, model::Terms::KEYS);
    }

    #[test]
    fn a_load_needs_a_rate() {
        parse(&["invoke", "hello", "--rate", "50/s", "--for", "2s"]).unwrap();
        parse(&["invoke", "hello", "--for", "2s"]).unwrap_err();
        parse(&["invoke", "hello", "--rate", "50/s", "--log"]).unwrap_err();
        parse(&["invoke", "hello", "--rate", "fast"]).unwrap_err();
    }

    #[test]
    fn names_are_checked_before_anything_happens() {
        parse(&["delete", "a/b"]).unwrap_err();
        parse(&["new", ".."]).unwrap_err();
    }

    #[test]
    fn json_is_understood_in_any_place() {
        assert!(parse(&["--json", "list"]).unwrap().json);
        assert!(parse(&["list", "--json"]).unwrap().json);
    }
}
