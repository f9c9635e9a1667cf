//! What the machine and its user give this node, gathered while it starts: the one list that is printed, answered and shown.
//!
//! The machine is asked first ([`runtime::host`]); what is tried later, and does not work, is noted here in its place.

use std::io;

use runtime::cgroup::Controller;
use runtime::host::{Grant, Protection};
use runtime::launcher::{Standing, Users};
use runtime::sandbox::Interpreter;

use crate::descriptors;

/// Most consequential first.
#[derive(Debug)]
pub(crate) struct Protections(Vec<Protection>);

impl Protections {
    pub(crate) const fn new(of_the_machine: Vec<Protection>) -> Self {
        Self(of_the_machine)
    }

    pub(crate) fn into_list(self) -> Vec<Protection> {
        self.0
    }

    /// Files that this user may have open.
    pub(crate) fn descriptors(&mut self, allowed: u64) {
        let grant = if allowed < descriptors::WANTED {
            no(format!("this user may open {allowed} files, {} are wanted", descriptors::WANTED))
        } else {
            Grant::Yes
        };
        let consequence = "fewer clients may be connected in proportion, and instances beyond that do not start";
        self.note(Protection::new("descriptors", &grant, consequence, "raise RLIMIT_NOFILE"));
    }

    /// How locking the node's memory went, where it has real-time threads.
    pub(crate) fn locked_memory(&mut self, locked: io::Result<()>) {
        let grant = locked.map_or_else(|error| no(error.to_string()), |()| Grant::Yes);
        self.note(Protection::new("locked memory", &grant, "a page fault can delay the front", "raise RLIMIT_MEMLOCK"));
    }

    /// Why instances cannot be of real-time class on a node that can, if they cannot.
    pub(crate) fn real_time_instances(&mut self, refused: Option<String>) {
        let grant = refused.map_or(Grant::Yes, no);
        let remedy = "give the cpu group rt_runtime, or the node CAP_SYS_NICE";
        let consequence = "guarantees are given at level soft only";
        self.note(Protection::new("real-time scheduling of instances", &grant, consequence, remedy));
    }

    /// Whether a node without real-time classes got a weight among other programs, or why not.
    pub(crate) fn weight(&mut self, entered: Result<(), String>) {
        let grant = entered.map_or_else(no, |()| Grant::Yes);
        let remedy = "run as root, or give its service or session a weight (CPUWeight=)";
        let consequence = "every program of the machine weighs as much as the node, and what it promised is late beside many";
        self.note(Protection::new("weight among other programs", &grant, consequence, remedy));
    }

    /// What a launcher found when it opened.
    pub(crate) fn launcher(&mut self, standing: Standing) {
        let own = match standing.users {
            Users::Own => Grant::Yes,
            Users::Shared => no("this user cannot change to others".to_owned()),
        };
        let consequence = "instances run as the node's user, each in a user namespace; what the kernel counts by user they share";
        self.note(Protection::new("a user for each instance", &own, consequence, "run as root"));
        let (memory, cpu) = (standing.no_groups.map_or(Grant::Yes, no), standing.no_cpu_groups.map_or(Grant::Yes, no));
        for (controller, grant) in [(Controller::Memory, &memory), (Controller::Pids, &memory), (Controller::Cpu, &cpu)] {
            let name = format!("control groups: {}", controller.name());
            self.note(Protection::new(&name, grant, controller.without(), "run as root, or delegate a group to the node"));
        }
    }

    /// What was found of the interpreters that runtimes need.
    pub(crate) fn interpreters(&mut self, python: &Result<Interpreter, String>, nodejs: &Result<Interpreter, String>) {
        for (runtime, found, remedy) in [
            ("python", python, "install Python 3.9 or later as `python3` where PATH leads"),
            ("nodejs", nodejs, "install Node.js 18 or later as `node` where PATH leads"),
        ] {
            let grant = found.as_ref().map_or_else(|reason| no(reason.clone()), |_| Grant::Yes);
            let name = format!("runtime `{runtime}`");
            self.note(Protection::new(&name, &grant, "functions of it cannot be started", remedy));
        }
    }

    /// What could not be measured of what runtimes cost, in words.
    pub(crate) fn costs(&mut self, complaints: &[String]) {
        let grant = if complaints.is_empty() { Grant::Yes } else { no(complaints.join("; ")) };
        let consequence = "admission charges more than is likely used, or measures again at the next start";
        self.note(Protection::new("measured costs of runtimes", &grant, consequence, "see the reason"));
    }

    /// Takes its place by its name; what is known to be missing stays so, with its first reason.
    fn note(&mut self, noted: Protection) {
        match self.0.iter_mut().find(|known| known.name == noted.name) {
            Some(known) if known.missing.is_none() => *known = noted,
            Some(_) => {}
            None => self.0.push(noted),
        }
    }
}

fn no(reason: String) -> Grant {
    Grant::No { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_in_vain_takes_its_place_in_the_list_and_no_reason_is_lost() {
        let of_the_machine = |grant| Protection::new("control groups: memory", &grant, "c", "r");
        let standing = Standing {
            users: Users::Own,
            no_groups: Some("busy".to_owned()),
            no_cpu_groups: None,
            daemon_group: None,
            no_real_time: None,
        };
        let reason = |grant| {
            let mut protections = Protections::new(vec![of_the_machine(grant), Protection::new("b", &Grant::Yes, "", "")]);
            protections.launcher(standing.clone());
            let list = protections.into_list();
            assert_eq!(list.iter().filter(|it| it.name == "control groups: memory").count(), 1);
            list[0].missing.as_ref().map(|missing| missing.reason.clone())
        };
        assert_eq!(reason(Grant::Yes).as_deref(), Some("busy"));
        assert_eq!(reason(no("read-only".to_owned())).as_deref(), Some("read-only"));
    }

    #[test]
    fn few_descriptors_are_said_with_the_numbers() {
        let check = |allowed, expected: bool| {
            let mut protections = Protections::new(Vec::new());
            protections.descriptors(allowed);
            assert_eq!(protections.into_list()[0].to_string().contains("1024 files, "), expected);
        };
        check(1_024, true);
        check(descriptors::WANTED, false);
    }
}
