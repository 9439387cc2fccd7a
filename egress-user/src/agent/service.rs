//! The service manager: systemd, if the agent runs under it.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Packets are translated, or will be as soon as it is this router's turn.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// What `systemctl status` shows.
pub(super) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// The agent is alive.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// The agent ends because it was asked to.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often the manager wants to hear of it: twice in the time after which it would start the agent anew. Once an hour
/// where it does not ask.
pub(super) fn watchdog() -> Interval {
    let period = sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |limit| limit / 2);
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn tell(state: &[NotifyState<'_>]) {
    // Not under a manager is fine.
    let _no_manager = sd_notify::notify(state);
}
