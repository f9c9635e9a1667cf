//! The command-line reference as Markdown, made from the commands themselves.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::args::Cli;

/// The page `docs/reference/cli.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Command line\n\nMade from the program by `cargo xtask docs`; edit `crates/cli/src/args.rs` instead.\n\n\
         Exit codes: 0 done, 1 error, 2 usage, 3 refused by admission. `--json` works with every command.\n",
    );
    let mut root = Cli::command();
    root.build();
    section(&root, "takt", &mut text);
    text
}

fn section(command: &Command, path: &str, text: &mut String) {
    // Writing into a string does not fail.
    let _ = write!(text, "\n## `{path}`\n\n");
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        let _ = write!(text, "{about}\n\n");
    }
    let usage = command.clone().render_usage().to_string();
    let _ = writeln!(text, "```text\n{}\n```", usage.trim_start_matches("Usage: ").trim_end());
    let arguments: Vec<&Arg> = command.get_arguments().filter(|argument| is_own(argument)).collect();
    if !arguments.is_empty() {
        text.push_str("\n| argument | meaning |\n|---|---|\n");
        for argument in arguments {
            let _ = writeln!(text, "| {} | {} |", spelling(argument), meaning(argument));
        }
    }
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        section(sub, &format!("{path} {}", sub.get_name()), text);
    }
}

fn is_own(argument: &Arg) -> bool {
    !argument.is_hide_set() && !matches!(argument.get_id().as_str(), "help" | "version" | "json")
}

fn spelling(argument: &Arg) -> String {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let value = argument.get_value_names().and_then(<[_]>::first).map_or_else(String::new, ToString::to_string);
    let names: Vec<String> = [argument.get_short().map(|c| format!("-{c}")), argument.get_long().map(|name| format!("--{name}"))]
        .into_iter()
        .flatten()
        .collect();
    match (names.is_empty(), takes_value) {
        (true, _) => format!("`{value}`"),
        (false, true) => format!("`{} {value}`", names.join("`, `")),
        (false, false) => format!("`{}`", names.join("`, `")),
    }
}

fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
    let values: Vec<String> = argument
        .get_possible_values()
        .into_iter()
        .filter(|_| matches!(argument.get_action(), ArgAction::Set))
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() {
        let _ = write!(text, "; one of {}", values.join(", "));
    }
    let defaults: Vec<String> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if !defaults.is_empty() && !matches!(argument.get_action(), ArgAction::SetTrue) {
        let _ = write!(text, "; default {}", defaults.join(" "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(text, "; or `{}`", variable.to_string_lossy());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_command_has_its_section_and_no_hidden_one() {
        let page = markdown();
        for command in ["takt deploy", "takt invoke", "takt guarantee set"] {
            assert!(page.contains(&format!("\n## `{command}`\n")), "{command}");
        }
        assert!(!page.contains("internal"));
        assert!(page.lines().all(|line| line == line.trim_end()), "no line ends in white space");
    }
}
