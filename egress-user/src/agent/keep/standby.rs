//! Standing by: a router that has its addresses only while nobody else answers for them.
//!
//! Routers of one specification on several nodes have one identity and one MAC. Which of them works is written down nowhere: the
//! wire is the truth, so no lease, no cluster and no word between them is needed. Each asks every second, from its master
//! ([`Inquiry`]), who has the addresses.
//!
//! - Who waits has nothing in the router's namespace. When nobody has answered for a whole probe, it takes the addresses: an
//!   ordinary first apply.
//! - Who works gives way, that is, takes everything away and waits, when its link has lost the carrier, when the cluster's
//!   interface is gone, or when another answers for the addresses, too: a network that was in two has healed, or both were
//!   moved by an edit that reached one of them first.
//! - When several could do the same at once, the one with the lowest master's MAC takes, or keeps, the addresses, and the
//!   others leave it a bounded number of rounds to do so. So neither nobody nor two is a state that lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Keeper;
use crate::agent::error::Chain;
use crate::agent::{AgentError, fault};
use crate::compile::{Desired, MacvlanMode};
use crate::link::{Conflict, Heard, Inquiry, LinkError, Mac, Place};
use crate::status::Fault;

/// From one question to the next. An answer takes milliseconds.
pub(in crate::agent) const ROUND: Duration = Duration::from_secs(1);
/// Questions without an answer that make an address free (RFC 5227, PROBE_NUM).
const SILENT: u32 = 3;
/// Rounds that one router leaves to another whose turn is before its own: as long as taking over may take.
const TURN: u32 = 3;
/// Most turns that are left to others, however many ask.
const TURNS: usize = 3;
/// Looks at a link without carrier, or in vain for one, after which it is lost, and no flutter.
const DARK: u32 = 2;
/// Rounds in which another is heard after which it is there, and no frame of one's own that came round.
const CONTESTED: u32 = 2;

/// Rounds in a row that speak for a change, and who else asked in them.
#[derive(Debug, Default)]
struct Case {
    rounds: u32,
    asking: BTreeSet<Mac>,
}

impl Case {
    /// One more round, which speaks for the change or ends the case.
    fn hear(&mut self, speaks_for_it: bool, asking: &BTreeSet<Mac>) {
        if speaks_for_it {
            self.rounds += 1;
            self.asking.extend(asking);
        } else {
            *self = Self::default();
        }
    }

    /// Whether a router that waits takes the addresses, after rounds in which nobody answered.
    fn takes(&self, own: Mac) -> bool {
        let before = self.asking.range(..own).take(TURNS);
        self.rounds >= before.fold(SILENT, |rounds, _| rounds + TURN)
    }

    /// Whether a router that works gives way, after rounds in which another answered, too. One that has not yet found itself
    /// alone has nothing to lose by it.
    fn gives_way(&self, own: Mac, was_alone: bool) -> bool {
        let is_first = self.asking.first().is_none_or(|first| own < *first);
        self.rounds >= if is_first && was_alone { CONTESTED + TURN } else { CONTESTED }
    }
}

/// What a router in standby mode knows of the others.
#[derive(Debug, Default)]
pub(super) struct Standby {
    inquiry: Option<Inquiry>,
    case: Case,
    /// Looks in a row at a link without carrier.
    dark: u32,
    /// Whether it has found itself alone since it works.
    was_alone: bool,
    /// Whether it cannot ask.
    is_deaf: bool,
    /// Who answers for which address, while it waits.
    holders: BTreeMap<IpAddr, Mac>,
    /// Others of the same identity that the external interface heard.
    twins: Vec<Conflict>,
    reflection_told: bool,
}

impl Standby {
    /// Who answers for the addresses, in words.
    pub(super) fn sentence(&self, addresses: &[IpAddr]) -> String {
        let holders: Vec<String> = self.holders.iter().map(|(address, mac)| format!("{address} is at {mac}")).collect();
        if holders.is_empty() {
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            return format!("ready to take over, and nobody answers for {}", addresses.join(", "));
        }
        format!("ready to take over from whoever answers now: {}", holders.join(", "))
    }

    /// Takes note of others of the same identity, heard on the external interface.
    pub(super) fn note(&mut self, twins: Vec<Conflict>) {
        self.twins.extend(twins);
    }

    /// What was heard since the last question, then the next one. Nothing where it is the first.
    fn listen(&mut self, place: &Place, master: &str, addresses: &[IpAddr]) -> Result<Option<Heard>, LinkError> {
        let open = self.inquiry.take().filter(|inquiry| inquiry.master() == master);
        let (inquiry, heard) = match open {
            Some(inquiry) => {
                let heard = inquiry.heard(addresses)?;
                (inquiry, Some(heard))
            }
            None => (Inquiry::open(place, master)?, None),
        };
        inquiry.ask(addresses)?;
        // One that failed is not kept: the next round opens another, on the master as it is then.
        self.inquiry = Some(inquiry);
        Ok(heard)
    }

    fn own(&self) -> Mac {
        self.inquiry.as_ref().map_or(Mac::BROADCAST, Inquiry::own)
    }
}

/// What follows from a round.
enum Step {
    Stay,
    TakeOver,
    /// With the reason.
    GiveWay(String),
}

impl Keeper {
    /// Whether it is in standby mode: it works only while no other router does.
    pub(in crate::agent) fn is_standby(&self) -> bool {
        self.standby.is_some()
    }

    /// Whether it stands by for another router.
    pub(in crate::agent) fn waits(&self) -> bool {
        self.standby.is_some() && !self.in_force
    }

    /// One round in standby mode: what the wire says, what follows from it, and the next question.
    pub(in crate::agent) fn round(&mut self) {
        let Some(mut standby) = self.standby.take() else { return };
        let step = if self.in_force { self.hold(&mut standby) } else { self.wait(&mut standby) };
        self.standby = Some(standby);
        match step {
            Step::Stay => {}
            Step::TakeOver => self.take_addresses(),
            Step::GiveWay(why) => self.give_way(&why),
        }
        self.tell();
    }

    fn wait(&mut self, standby: &mut Standby) -> Step {
        let addresses = self.addresses();
        // What would keep it from taking over is found by the plan: a master that is missing, down or without carrier, a
        // cluster interface that is gone, an address that the node itself has.
        let heard = self.router.plan(&self.desired).and_then(|plan| {
            let heard = standby.listen(self.router.place(), &plan.master, &addresses)?;
            self.master = plan.master;
            Ok(heard)
        });
        let heard = match heard {
            Ok(heard) => heard,
            Err(failed) => {
                *standby = Standby { is_deaf: true, ..Standby::default() };
                let fault = fault::of_repair("cannot stand by", &failed);
                self.drift(Fault { blocks: true, ..fault });
                return Step::Stay;
            }
        };
        let hears_again = std::mem::take(&mut standby.is_deaf);
        let Some(heard) = heard else { return Step::Stay };
        let free = heard.holders.is_empty();
        if !free || hears_again {
            self.drifted = None;
            self.retry_repair.settled();
        }
        standby.case.hear(free, &heard.asking);
        standby.holders = heard.holders;
        if standby.case.takes(standby.own()) && self.retry_repair.allows(Instant::now()) {
            return Step::TakeOver;
        }
        Step::Stay
    }

    fn hold(&mut self, standby: &mut Standby) -> Step {
        let (external, lost) = match self.router.observe() {
            Ok(observed) => (observed.external, "its external interface has lost its carrier".to_owned()),
            Err(failed) if failed.is_of_cluster() => (None, failed.to_string()),
            Err(failed) => {
                warn!("look at the interfaces: {}", Chain(&failed));
                return Step::Stay;
            }
        };
        let lit = external.as_ref().is_some_and(|external| external.up && external.lower_up);
        standby.dark = if lit { 0 } else { standby.dark + 1 };
        if standby.dark >= DARK {
            return Step::GiveWay(lost);
        }
        let addresses = self.addresses();
        let heard = match standby.listen(self.router.place(), &self.master, &addresses) {
            Ok(Some(heard)) => heard,
            Ok(None) => return Step::Stay,
            Err(failed) => {
                debug!("ask who has the addresses: {}", Chain(&failed));
                return Step::Stay;
            }
        };
        if heard.reflected && !standby.reflection_told {
            warn!(
                "the network gives back what is sent: another router of the same identity cannot be told from this one"
            );
            standby.reflection_told = true;
        }
        let own = external.and_then(|external| external.mac);
        let on_net1 = std::mem::take(&mut standby.twins).into_iter().map(|twin| (twin.address, twin.holder));
        let counts = |holder: Mac| if Some(holder) == own { !heard.reflected } else { self.is_passthru() };
        let mut others = on_net1.chain(heard.holders).filter(|(_, holder)| counts(*holder));
        let (other, was_contested) = (others.next(), standby.case.rounds > 0);
        standby.case.hear(other.is_some(), &heard.asking);
        if let Some((address, holder)) = other {
            if standby.case.gives_way(standby.own(), standby.was_alone) {
                return Step::GiveWay(format!("another router answers for {address} from {holder}, too"));
            }
        } else {
            standby.was_alone = true;
            if was_contested {
                // What the other said last is what switches and neighbours know.
                self.announce(addresses);
            }
        }
        Step::Stay
    }

    /// Whether this is the Ethernet address of another router of the same identity: the own one, or any in passthru mode,
    /// where each has its master's.
    pub(super) fn is_twin(&self, holder: Mac, own: Mac) -> bool {
        holder == own || self.standby.is_some() && self.is_passthru()
    }

    fn is_passthru(&self) -> bool {
        self.desired.link.mode == MacvlanMode::Passthru
    }

    /// Looks whether it works already, as after a restart; else it waits, with nothing in the router's namespace. Who works
    /// and was away for a while is the one that gives way if another answers.
    pub(super) fn begins_waiting(&mut self) -> Result<bool, AgentError> {
        self.router.lock()?;
        if self.standby.is_none() || self.router.has_addresses()? {
            return Ok(false);
        }
        self.router.delete()?;
        info!("stands by");
        self.tell();
        Ok(true)
    }

    /// What an earlier agent left cannot be put right: nobody would know whether it works, so others may take over.
    pub(super) fn gives_up(&mut self, failed: &AgentError) -> Result<(), AgentError> {
        warn!("takes away what an earlier agent left, and stands by: {}", Chain(failed));
        self.take_away()?;
        self.tell();
        Ok(())
    }

    /// Whether an edit could not be applied because another router of the same identity, which read it earlier, has its
    /// addresses already.
    pub(super) fn comes_second(&self, edit: &Desired, failed: &AgentError) -> bool {
        let conflicts = failed.conflicts();
        if self.standby.is_none() || conflicts.is_empty() {
            return false;
        }
        let own = self.router.plan(edit).map(|plan| plan.mac);
        edit.link.mode == MacvlanMode::Passthru
            || own.is_ok_and(|own| conflicts.iter().any(|conflict| conflict.holder == own))
    }

    fn take_addresses(&mut self) {
        info!("nobody answers for the router's addresses: it takes over");
        match self.router.apply(&self.desired) {
            Ok(applied) => {
                self.counts.takeovers += 1;
                self.restart_standby(true);
                self.succeeded(&applied);
            }
            Err(failed) => {
                self.restart_standby(false);
                self.retry_repair.failed(Instant::now());
                self.drift(fault::of_repair("could not take over", &failed));
            }
        }
    }

    /// Takes the router away, and waits.
    pub(super) fn give_way(&mut self, why: &str) {
        warn!("gives way and stands by: {why}");
        if let Err(failed) = self.take_away() {
            // It is tried again in the next round.
            return self.drift(fault::of_repair("could not give way", &failed));
        }
        self.in_force = false;
        self.forget_wire();
        self.restart_standby(false);
    }

    /// From the beginning: what was heard before says nothing any more.
    pub(super) fn restart_standby(&mut self, was_alone: bool) {
        if let Some(standby) = &mut self.standby {
            *standby = Standby { was_alone, ..Standby::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const MIDDLE: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const HIGH: Mac = Mac([2, 0, 0, 0, 0, 3]);

    /// The first round, of those that all speak for it, in which it happens.
    fn first(asking: &[Mac], happens: impl Fn(&Case) -> bool) -> Option<u32> {
        let (mut case, asking) = (Case::default(), asking.iter().copied().collect());
        (1..100).find(|_| {
            case.hear(true, &asking);
            happens(&case)
        })
    }

    #[test]
    fn who_is_alone_takes_over_after_a_whole_probe() {
        assert_eq!(first(&[], |case| case.takes(HIGH)), Some(SILENT));
        assert!(!Case::default().takes(LOW));
    }

    #[test]
    fn of_several_that_wait_the_lowest_goes_first_and_each_leaves_the_others_time() {
        assert_eq!(first(&[MIDDLE, HIGH], |case| case.takes(LOW)), Some(SILENT));
        assert_eq!(first(&[LOW, HIGH], |case| case.takes(MIDDLE)), Some(SILENT + TURN));
        assert_eq!(first(&[LOW, MIDDLE], |case| case.takes(HIGH)), Some(SILENT + 2 * TURN));
        // Whoever asks: nobody waits for ever.
        let crowd: Vec<Mac> = (0..50).map(|last| Mac([0, 0, 0, 0, 0, last])).collect();
        assert_eq!(first(&crowd, |case| case.takes(HIGH)), Some(SILENT + 3 * TURN));
    }

    #[test]
    fn an_answer_ends_the_case_and_with_it_who_asked() {
        let mut case = Case::default();
        for _ in 0..SILENT + TURN - 1 {
            case.hear(true, &BTreeSet::from([LOW]));
        }
        assert!(!case.takes(HIGH));
        case.hear(false, &BTreeSet::from([LOW]));
        for _ in 0..SILENT {
            assert!(!case.takes(HIGH));
            case.hear(true, &BTreeSet::new());
        }
        assert!(case.takes(HIGH));
    }

    #[test]
    fn of_two_that_work_the_higher_gives_way_and_the_lower_sees_it_do_so() {
        assert_eq!(first(&[LOW], |case| case.gives_way(HIGH, true)), Some(CONTESTED));
        assert_eq!(first(&[HIGH], |case| case.gives_way(LOW, true)), Some(CONTESTED + TURN));
        // One that asks nothing has no agent, and will not give way.
        assert_eq!(first(&[], |case| case.gives_way(HIGH, true)), Some(CONTESTED + TURN));
        assert!(!Case::default().gives_way(HIGH, true));
    }

    #[test]
    fn who_begins_with_what_an_earlier_agent_left_leaves_no_turn_to_others() {
        assert_eq!(first(&[HIGH], |case| case.gives_way(LOW, false)), Some(CONTESTED));
    }
}
