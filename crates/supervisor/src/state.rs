//! What has happened to the machine so far: the lines for the control socket and the facts of the exit record.

use std::collections::VecDeque;

use serde_json::{json, Value};

use crate::clock;
use crate::process::Ending;

/// Why the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Exit,
    BootTimeout,
    Killed,
    OwnerGone,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::BootTimeout => "boot-timeout",
            Self::Killed => "killed",
            Self::OwnerGone => "owner-gone",
        }
    }
}

/// The kinds of event that a new client is told of; of each only the last is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Started,
    Booted,
    Step,
    Ready,
    Restart,
    Health,
    Failed,
    Violation,
    Exit,
    VmmExit,
}

/// The events in the order in which they happened, one of each kind, and the facts for the exit record.
pub struct State {
    events: Vec<(Kind, String)>,
    reason: Reason,
    guest_exit: Option<Value>,
    failed: Option<Value>,
    started_at: String,
    ready_at: Option<String>,
    restarts: u64,
    health: Option<Health>,
    exited: Option<(Ending, String)>,
}

/// How many results of checks are kept.
const MOST_RESULTS: usize = 5;

/// What the guest has told of its health in the entrypoint's present life.
struct Health {
    status: String,
    failing_streak: u64,
    results: VecDeque<Value>,
}

impl State {
    pub fn new() -> Self {
        Self {
            events: Vec::new(),
            reason: Reason::Exit,
            guest_exit: None,
            failed: None,
            started_at: clock::now_rfc3339(),
            ready_at: None,
            restarts: 0,
            health: None,
            exited: None,
        }
    }

    /// Notes an event; returns its line (with the newline) for the clients that are connected.
    pub fn record(&mut self, kind: Kind, value: &Value) -> String {
        match kind {
            Kind::Ready => self.ready_at = Some(clock::now_rfc3339()),
            Kind::Restart => self.restarts = value.get("count").and_then(Value::as_u64).unwrap_or_default(),
            Kind::Health => self.record_health(value),
            Kind::Failed => self.failed = Some(without_event(value)),
            Kind::Exit => self.guest_exit = Some(without_event(value)),
            _ => {}
        }
        let line = format!("{value}\n");
        self.events.retain(|(known, _)| *known != kind);
        self.events.push((kind, line.clone()));
        line
    }

    /// The VMM has ended.
    pub fn record_vmm_exit(&mut self, ending: Ending) {
        self.exited = Some((ending, clock::now_rfc3339()));
    }

    /// The first reason that is given stands.
    pub fn set_reason(&mut self, reason: Reason) {
        if self.reason == Reason::Exit && self.exited.is_none() {
            self.reason = reason;
        }
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// How often the guest has started its entrypoint again, as it says.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Without a result a life begins, and what was known is void.
    fn record_health(&mut self, value: &Value) {
        let result = value.get("result").filter(|result| !result.is_null()).cloned();
        let mut results = match (&result, self.health.take()) {
            (Some(_), Some(health)) => health.results,
            _ => VecDeque::new(),
        };
        results.extend(result);
        while results.len() > MOST_RESULTS {
            results.pop_front();
        }
        let status = value.get("status").and_then(Value::as_str).unwrap_or_default().to_owned();
        let failing_streak = value.get("failing_streak").and_then(Value::as_u64).unwrap_or_default();
        self.health = Some(Health { status, failing_streak, results });
    }

    /// `starting` also where nothing was told.
    pub fn health_status(&self) -> &str {
        self.health.as_ref().map_or("starting", |health| &health.status)
    }

    /// Null where nothing was told.
    pub fn health(&self) -> Value {
        self.health.as_ref().map_or(Value::Null, |health| {
            json!({"status": health.status, "failing_streak": health.failing_streak, "results": health.results})
        })
    }

    pub fn has(&self, kind: Kind) -> bool {
        self.events.iter().any(|(known, _)| *known == kind)
    }

    /// All lines so far, for a client that has just connected.
    pub fn history(&self) -> String {
        self.events.iter().map(|(_, line)| line.as_str()).collect()
    }

    /// One word for `{"op":"status"}`.
    pub fn summary(&self) -> &'static str {
        let order = [
            (Kind::VmmExit, "vmm-exited"),
            (Kind::Exit, "exited"),
            (Kind::Failed, "failed"),
            (Kind::Ready, "ready"),
            (Kind::Booted, "booted"),
        ];
        order.iter().find(|(kind, _)| self.has(*kind)).map_or("started", |(_, name)| name)
    }

    /// The exit record; meaningful once the VMM has ended.
    pub fn exit_record(&self, id: &str) -> Value {
        let (ending, exited_at) = match &self.exited {
            Some((ending, at)) => (*ending, Some(at)),
            None => (Ending::default(), None),
        };
        json!({
            "id": id,
            "reason": self.reason.name(),
            "guest_exit": self.guest_exit,
            "restarts": self.restarts,
            "health": self.health(),
            "failed": self.failed,
            "vmm_status": ending.status,
            "vmm_signal": ending.signal,
            "started_at": self.started_at,
            "ready_at": self.ready_at,
            "exited_at": exited_at,
        })
    }
}

fn without_event(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.remove("event");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::{Kind, Reason, State};
    use crate::process::Ending;
    use serde_json::json;

    #[test]
    fn only_the_last_step_is_told_and_the_order_is_kept() {
        let mut state = State::new();
        state.record(Kind::Started, &json!({"event": "started"}));
        for number in 0..5 {
            state.record(Kind::Step, &json!({"event": "step", "name": number.to_string()}));
        }
        state.record(Kind::Ready, &json!({"event": "ready"}));
        let names: Vec<String> = state.history().lines().map(str::to_owned).collect();
        assert_eq!(names, [r#"{"event":"started"}"#, r#"{"event":"step","name":"4"}"#, r#"{"event":"ready"}"#]);
        assert_eq!(state.summary(), "ready");
    }

    #[test]
    fn the_last_results_are_kept_and_a_new_life_voids_them() {
        let mut state = State::new();
        assert_eq!((state.health_status(), state.health()), ("starting", json!(null)));
        for number in 0..7 {
            let result = json!({"code": number});
            let value = json!({"event": "health", "status": "unhealthy", "failing_streak": number, "result": result});
            state.record(Kind::Health, &value);
        }
        let codes: Vec<i64> = (2..7).collect();
        let results: Vec<_> = codes.iter().map(|code| json!({"code": code})).collect();
        assert_eq!(state.health(), json!({"status": "unhealthy", "failing_streak": 6, "results": results}));
        state.record(Kind::Health, &json!({"event": "health", "status": "starting", "failing_streak": 0}));
        assert_eq!(state.health(), json!({"status": "starting", "failing_streak": 0, "results": []}));
        assert_eq!(state.exit_record("m1")["health"]["status"], "starting");
    }

    #[test]
    fn the_first_reason_stands_and_the_record_is_whole() {
        let mut state = State::new();
        state.record(Kind::Exit, &json!({"event": "exit", "code": 3, "signal": null}));
        state.set_reason(Reason::BootTimeout);
        state.set_reason(Reason::Killed);
        state.record_vmm_exit(Ending { status: None, signal: Some(9) });
        let record = state.exit_record("m1");
        assert_eq!(record["reason"], "boot-timeout");
        assert_eq!(record["guest_exit"], json!({"code": 3, "signal": null}));
        assert_eq!(record["vmm_signal"], 9);
        assert!(record["vmm_status"].is_null() && record["ready_at"].is_null());
        assert!(record["exited_at"].as_str().is_some_and(|text| text.ends_with('Z')));
    }
}
