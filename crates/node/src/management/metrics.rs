//! `/metrics`: the node's numbers in Prometheus' text format.

use std::fmt::{self, Write as _};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header;
use journal::record::Counters;
use model::Level;
use plan::admission::Demand;

use super::answer::{CAUSES, standing};
use super::{Error, Report, Shared};
use crate::control::{Gate, View};
use crate::lane::counts::What;

const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counters and gauges in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, content_type = "text/plain")))]
pub(super) async fn show(State(shared): State<Shared>) -> Result<Response, Error> {
    let counters = shared.control.counters().await?;
    let (view, report) = (shared.control.view(), shared.host.report());
    let mut page = Page(String::new());
    let written = page
        .node(&view, &report)
        .and_then(|()| page.traffic(&report))
        .and_then(|()| page.functions(&view))
        .and_then(|()| page.counters(&counters))
        .and_then(|()| page.usage(&report))
        .and_then(|()| {
            page.gauge("takt_log_lines_lost_total", "counter", "Log lines lost at a full queue", shared.logs.refused())
        });
    written.map_err(|error| Error::Internal { reason: error.to_string() })?;
    Ok(([(header::CONTENT_TYPE, FORMAT)], page.0).into_response())
}

/// What a demand says of a function's instances.
type Need = fn(&Demand) -> Duration;

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) -> fmt::Result {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}")
    }

    fn gauge(&mut self, name: &str, kind: &str, help: &str, value: impl fmt::Display) -> fmt::Result {
        self.head(name, kind, help)?;
        writeln!(self.0, "{name} {value}")
    }

    fn seconds(&mut self, name: &str, help: &str, value: Duration) -> fmt::Result {
        self.gauge(name, "gauge", help, value.as_secs_f64())
    }

    fn node(&mut self, view: &View, report: &Report) -> fmt::Result {
        let (capacity, left) = (view.book.capacity(), view.book.remaining());
        self.seconds("takt_uptime_seconds", "Time since the node started", report.uptime)?;
        self.seconds("takt_tolerance_seconds", "T, the dispatch tolerance as frozen", capacity.tolerance)?;
        self.seconds("takt_tolerance_seen_seconds", "The largest dispatch delay seen", report.tolerance_seen)?;
        self.head("takt_level", "gauge", "1 for the best level the node can give")?;
        for level in [Level::Hard, Level::Soft] {
            writeln!(self.0, "takt_level{{level=\"{level}\"}} {}", u8::from(level == capacity.level))?;
        }
        let open = u8::from(view.gate == Gate::Open);
        self.gauge("takt_admission_open", "gauge", "0 while no guarantees are given because evidence fails", open)?;
        self.head("takt_core_reserved_nanocores", "gauge", "What is promised of a core, in billionths")?;
        for (core, share) in left.cores.iter().enumerate() {
            writeln!(self.0, "takt_core_reserved_nanocores{{core=\"{core}\"}} {}", share.used_nanocores)?;
        }
        self.gauge("takt_memory_left_bytes", "gauge", "Memory left for guarantees", left.memory_bytes)?;
        self.gauge("takt_instances_left", "gauge", "Instances left for guarantees", left.instances)?;
        let evidence = &report.evidence;
        self.gauge("takt_evidence_records_total", "counter", "Records written since the first start", evidence.records_written)?;
        self.gauge("takt_evidence_lost", "gauge", "Records lost and not yet noted in the evidence", evidence.records_lost)?;
        self.gauge("takt_evidence_bytes", "gauge", "Bytes of evidence kept", evidence.bytes)?;
        let healthy = u8::from(evidence.problem.is_none());
        self.gauge("takt_evidence_healthy", "gauge", "1 while records are being written", healthy)?;
        self.head("takt_queue_length", "gauge", "What waits in a bounded queue")?;
        for queue in &report.queues {
            writeln!(self.0, "takt_queue_length{{queue=\"{}\"}} {}", escaped(queue.name), queue.length)?;
        }
        self.head("takt_queue_limit", "gauge", "How much may wait in a bounded queue")?;
        for queue in &report.queues {
            writeln!(self.0, "takt_queue_limit{{queue=\"{}\"}} {}", escaped(queue.name), queue.limit)?;
        }
        Ok(())
    }

    fn traffic(&mut self, report: &Report) -> fmt::Result {
        self.head("takt_requests_total", "counter", "Requests of clients whose head a lane read")?;
        for traffic in &report.traffic {
            writeln!(self.0, "takt_requests_total{{lane=\"{}\"}} {}", traffic.lane, traffic.counts.of(What::Request))?;
        }
        self.head("takt_connections_total", "counter", "What a lane did with connections of clients")?;
        for traffic in &report.traffic {
            for what in What::ALL.into_iter().filter(|what| *what != What::Request) {
                let (lane, name, count) = (traffic.lane, what.name(), traffic.counts.of(what));
                writeln!(self.0, "takt_connections_total{{lane=\"{lane}\",what=\"{name}\"}} {count}")?;
            }
        }
        Ok(())
    }

    fn functions(&mut self, view: &View) -> fmt::Result {
        self.head("takt_function_standing", "gauge", "1 for how a function stands")?;
        for (name, function) in &view.functions {
            let (standing, _) = standing(view, function);
            writeln!(self.0, "takt_function_standing{{function=\"{name}\",standing=\"{standing}\"}} 1")?;
        }
        self.head("takt_guarantee_instances", "gauge", "K, instances that may exist for a guarantee")?;
        for grant in view.book.grants() {
            writeln!(self.0, "takt_guarantee_instances{{function=\"{}\"}} {}", grant.demand.function, grant.instances())?;
        }
        self.head("takt_guarantee_warm", "gauge", "W, instances kept ready for a guarantee")?;
        for grant in view.book.grants() {
            writeln!(self.0, "takt_guarantee_warm{{function=\"{}\"}} {}", grant.demand.function, grant.warm())?;
        }
        let needs: [(&str, &str, Need); 2] = [
            ("takt_start_admitted_seconds", "L_cold, the start of an instance as admitted", |demand| demand.cold_start),
            ("takt_return_admitted_seconds", "CPU per invocation around the handler, as admitted", |demand| demand.instance_cost),
        ];
        for (name, help, of) in needs {
            self.head(name, "gauge", help)?;
            for grant in view.book.grants() {
                writeln!(self.0, "{name}{{function=\"{}\"}} {}", grant.demand.function, of(&grant.demand).as_secs_f64())?;
            }
        }
        Ok(())
    }

    fn counters(&mut self, all: &[Counters]) -> fmt::Result {
        self.head("takt_invocations_total", "counter", "Invocations of guaranteed functions by what became of them")?;
        for it in all {
            let kinds = [
                ("arrived", it.arrivals),
                ("conforming", it.conforming),
                ("excess", it.excess),
                ("expired", it.expired),
                ("refused", it.refused),
            ];
            for (kind, count) in kinds {
                self.counted("takt_invocations_total", it, ("kind", kind), count)?;
            }
        }
        self.head("takt_missed_total", "counter", "Conforming invocations that missed a promise")?;
        for it in all {
            self.counted("takt_missed_total", it, ("promise", "start"), it.start_violations)?;
            self.counted("takt_missed_total", it, ("promise", "deadline"), it.deadline_misses)?;
        }
        self.head("takt_violations_total", "counter", "Violations by cause")?;
        for it in all {
            for (cause, count) in CAUSES.into_iter().zip(it.by_cause) {
                self.counted("takt_violations_total", it, ("cause", cause), count)?;
            }
        }
        self.head("takt_held_seconds_total", "counter", "Time instances were held for pre-invocations")?;
        for it in all {
            let (function, generation) = (escaped(&it.function), it.generation);
            let held = it.held.as_secs_f64();
            writeln!(self.0, "takt_held_seconds_total{{function=\"{function}\",generation=\"{generation}\"}} {held}")?;
        }
        Ok(())
    }

    fn counted(&mut self, name: &str, of: &Counters, label: (&str, &str), count: u64) -> fmt::Result {
        let (function, generation) = (escaped(&of.function), of.generation);
        let (label, value) = label;
        writeln!(self.0, "{name}{{function=\"{function}\",generation=\"{generation}\",{label}=\"{value}\"}} {count}")
    }

    fn usage(&mut self, report: &Report) -> fmt::Result {
        self.head("takt_start_slowest_seconds", "gauge", "The slowest start of an instance of the version")?;
        for usage in &report.usage {
            let (function, slowest) = (escaped(&usage.function), usage.start_slowest.as_secs_f64());
            writeln!(self.0, "takt_start_slowest_seconds{{function=\"{function}\"}} {slowest}")?;
        }
        self.head("takt_return_dearest_seconds", "gauge", "The most CPU between an answer and asking for the next invocation")?;
        for usage in &report.usage {
            let (function, dearest) = (escaped(&usage.function), usage.returning_dearest.as_secs_f64());
            writeln!(self.0, "takt_return_dearest_seconds{{function=\"{function}\"}} {dearest}")?;
        }
        self.head("takt_reserved_instance_seconds_total", "counter", "Time in which reserved instances existed, summed")?;
        for usage in &report.usage {
            let function = escaped(&usage.function);
            writeln!(self.0, "takt_reserved_instance_seconds_total{{function=\"{function}\"}} {}", usage.reserved_seconds)?;
        }
        self.head("takt_used_instance_seconds_total", "counter", "Time in which reserved instances ran invocations, summed")?;
        for usage in &report.usage {
            let function = escaped(&usage.function);
            writeln!(self.0, "takt_used_instance_seconds_total{{function=\"{function}\"}} {}", usage.used_seconds)?;
        }
        Ok(())
    }
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
