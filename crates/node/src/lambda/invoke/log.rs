//! The log lines of one invocation and their last four kilobytes, as `LogType=Tail` returns them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::{InvocationId, Memory};

/// Bytes of log that an answer carries; AWS's number.
pub const MAX_TAIL_BYTES: usize = 4096;

/// What the `REPORT` line says of an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub duration: Duration,
    pub memory: Memory,
    /// The most the instance ever used, where the kernel counts it.
    pub max_memory_mib: Option<u32>,
    /// The start of the instance, when this was its first invocation.
    pub init: Option<Duration>,
}

impl Report {
    /// The line before a function's own output.
    #[must_use]
    pub fn start_line(id: InvocationId) -> String {
        format!("START RequestId: {id} Version: $LATEST\n")
    }

    /// The lines after a function's own output.
    #[must_use]
    pub fn end_lines(&self, id: InvocationId) -> String {
        let mut text = format!("END RequestId: {id}\nREPORT RequestId: {id}\tDuration: {} ms\t", millis(self.duration));
        text.push_str(&format!("Billed Duration: {} ms\t", self.duration.as_nanos().div_ceil(1_000_000)));
        text.push_str(&format!("Memory Size: {} MB\t", self.memory.mib()));
        if let Some(mib) = self.max_memory_mib {
            text.push_str(&format!("Max Memory Used: {mib} MB\t"));
        }
        if let Some(init) = self.init {
            text.push_str(&format!("Init Duration: {} ms\t", millis(init)));
        }
        text.push('\n');
        text
    }

    /// The last [`MAX_TAIL_BYTES`] of the invocation's log, in base64. `output` is what the function wrote, or its end.
    #[must_use]
    pub fn tail(&self, id: InvocationId, output: &[u8]) -> String {
        let end = self.end_lines(id);
        let start = Self::start_line(id);
        let newline: &[u8] = if output.is_empty() || output.ends_with(b"\n") { b"" } else { b"\n" };
        let kept = output.len().min(MAX_TAIL_BYTES);
        let mut all = Vec::with_capacity(start.len() + kept + 1 + end.len());
        all.extend_from_slice(start.as_bytes());
        all.extend_from_slice(&output[output.len() - kept..]);
        all.extend_from_slice(newline);
        all.extend_from_slice(end.as_bytes());
        STANDARD.encode(&all[all.len().saturating_sub(MAX_TAIL_BYTES)..])
    }
}

/// Milliseconds with two decimals, cut.
fn millis(duration: Duration) -> String {
    let hundredths = duration.as_nanos() / 10_000;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(init: Option<Duration>) -> Report {
        Report { duration: Duration::from_micros(1_234), memory: Memory::DEFAULT, max_memory_mib: Some(31), init }
    }

    fn tail(output: &[u8]) -> Vec<u8> {
        STANDARD.decode(report(None).tail(InvocationId::from_random(0), output)).unwrap()
    }

    #[test]
    fn the_lines_are_aws_s() {
        let id = "00000000-0000-4000-8000-000000000000";
        let expected = format!(
            "START RequestId: {id} Version: $LATEST\nhello\nEND RequestId: {id}\nREPORT RequestId: {id}\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 31 MB\t\n"
        );
        assert_eq!(String::from_utf8(tail(b"hello")).unwrap(), expected);
        assert_eq!(tail(b"hello\n"), tail(b"hello"));
        let cold = report(Some(Duration::from_millis(80))).end_lines(InvocationId::from_random(0));
        assert!(cold.ends_with("\tInit Duration: 80.00 ms\t\n"), "{cold}");
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let tail = tail("x".repeat(100_000).as_bytes());
        assert_eq!(tail.len(), MAX_TAIL_BYTES);
        assert!(tail.starts_with(b"x") && tail.ends_with(b"\t\n"));
    }
}
