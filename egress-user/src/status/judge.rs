//! From what is known to what is said.

use std::net::IpAddr;

use super::condition::{ConditionStatus, ConditionType, Verdict};
use super::fault::Fault;

/// What is known of a router at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// What packets are translated by; none before the first apply.
    pub in_force: Option<InForce>,
    /// For whom it stands by, in words; none where it does not.
    pub waiting: Option<String>,
    /// What is the matter.
    pub faults: Vec<Fault>,
    /// What it is on its way to.
    pub activity: Option<Activity>,
}

/// What packets are translated by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// How many rules.
    pub rules: usize,
    /// Where everything else goes.
    pub fallback: Option<IpAddr>,
    /// The addresses that connections come from.
    pub addresses: Vec<IpAddr>,
}

/// What a router is on its way to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Its first apply.
    Starting,
    /// The latest edit, which could not be applied and will be tried again.
    Retrying,
    /// The system as it should be, which could not be reached and will be tried again.
    Repairing,
    /// The end of flows whose rule is gone.
    Draining,
}

impl Activity {
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Starting => ("Starting", "the specification is being applied for the first time"),
            Self::Retrying => ("Retrying", "the latest edit will be tried again by itself"),
            Self::Repairing => ("Repairing", "the system will be put right as soon as that can be done"),
            Self::Draining => ("Draining", "flows of rules that were changed go on until they end or are cut"),
        }
    }
}

/// The three conditions.
pub fn judge(picture: &Picture) -> [Verdict; 3] {
    let mut faults = picture.faults.clone();
    faults.sort();
    faults.dedup();
    [available(picture, &faults), progressing(picture), degraded(&faults)]
}

fn verdict(kind: ConditionType, holds: bool, reason: &'static str, message: String) -> Verdict {
    Verdict { kind, status: ConditionStatus::from(holds), reason, message }
}

fn available(picture: &Picture, faults: &[Fault]) -> Verdict {
    let no = |reason, message| verdict(ConditionType::Available, false, reason, message);
    let blocking: Vec<&Fault> = faults.iter().filter(|fault| fault.blocks).collect();
    match (blocking.first(), &picture.in_force, &picture.waiting) {
        (Some(first), ..) => no(first.reason.name(), sentence(blocking.iter().copied())),
        (None, None, Some(waiting)) => no("Standby", waiting.clone()),
        (None, None, None) => no("NotInstalled", "no specification is in force".to_owned()),
        (None, Some(in_force), _) => verdict(ConditionType::Available, true, "Translating", in_force.sentence()),
    }
}

fn progressing(picture: &Picture) -> Verdict {
    let kind = ConditionType::Progressing;
    match picture.activity {
        Some(activity) => {
            let (reason, message) = activity.words();
            verdict(kind, true, reason, message.to_owned())
        }
        None => verdict(kind, false, "Settled", "nothing is left to do".to_owned()),
    }
}

fn degraded(faults: &[Fault]) -> Verdict {
    let kind = ConditionType::Degraded;
    match faults.first() {
        Some(first) => verdict(kind, true, first.reason.name(), sentence(faults)),
        None => verdict(kind, false, "AsSpecified", "all is as the specification wants it".to_owned()),
    }
}

fn sentence<'a>(faults: impl IntoIterator<Item = &'a Fault>) -> String {
    faults.into_iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}

impl InForce {
    fn sentence(&self) -> String {
        let rules = match self.rules {
            0 => "no rule".to_owned(),
            1 => "1 rule".to_owned(),
            many => format!("{many} rules"),
        };
        let fallback = self.fallback.map_or_else(|| "no fallback".to_owned(), |ip| format!("the fallback {ip}"));
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        format!("{rules} and {fallback} in force, from {}", addresses.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reason;
    use super::*;

    fn in_force() -> InForce {
        InForce { rules: 2, fallback: None, addresses: vec!["192.168.12.99".parse().unwrap()] }
    }

    fn words(picture: &Picture) -> [(bool, &'static str); 3] {
        judge(picture).map(|verdict| (verdict.status == ConditionStatus::True, verdict.reason))
    }

    #[test]
    fn a_router_at_rest() {
        let picture = Picture { in_force: Some(in_force()), ..Picture::default() };
        assert_eq!(words(&picture), [(true, "Translating"), (false, "Settled"), (false, "AsSpecified")]);
        assert_eq!(judge(&picture)[0].message, "2 rules and no fallback in force, from 192.168.12.99");
    }

    #[test]
    fn a_router_that_has_not_started() {
        let picture = Picture { activity: Some(Activity::Starting), ..Picture::default() };
        assert_eq!(words(&picture), [(false, "NotInstalled"), (true, "Starting"), (false, "AsSpecified")]);
    }

    #[test]
    fn a_router_that_stands_by_is_not_available_and_well() {
        let waiting =
            Picture { waiting: Some("192.168.12.99 is at 02:00:00:00:00:07".to_owned()), ..Picture::default() };
        assert_eq!(words(&waiting), [(false, "Standby"), (false, "Settled"), (false, "AsSpecified")]);
        assert!(judge(&waiting)[0].message.contains("02:00:00:00:00:07"));
        let down = Picture { faults: vec![Fault::blocking(Reason::MasterDown, "up0 is down")], ..waiting };
        assert_eq!(words(&down), [(false, "MasterDown"), (false, "Settled"), (true, "MasterDown")]);
    }

    #[test]
    fn a_refused_edit_degrades_and_leaves_it_available() {
        let fault = Fault::new(Reason::SpecificationInvalid, "line 3");
        let picture = Picture { in_force: Some(in_force()), faults: vec![fault], ..Picture::default() };
        assert_eq!(words(&picture), [(true, "Translating"), (false, "Settled"), (true, "SpecificationInvalid")]);
    }

    #[test]
    fn the_weightiest_fault_gives_the_reason_and_all_are_told() {
        let faults = vec![
            Fault::new(Reason::SpecificationInvalid, "line 3"),
            Fault::blocking(Reason::MasterDown, "up0 is down"),
            Fault::blocking(Reason::GatewayUnreachable, "192.168.12.1 does not answer"),
            Fault::blocking(Reason::MasterDown, "up0 is down"),
        ];
        let activity = Some(Activity::Repairing);
        let picture = Picture { in_force: Some(in_force()), faults, activity, ..Picture::default() };
        assert_eq!(words(&picture), [(false, "MasterDown"), (true, "Repairing"), (true, "MasterDown")]);
        let [available, _, degraded] = judge(&picture);
        assert_eq!(available.message, "up0 is down; 192.168.12.1 does not answer");
        assert_eq!(degraded.message, "up0 is down; 192.168.12.1 does not answer; line 3");
    }
}
