//! The state of a TCP connection, seen from the middle.
//!
//! Each of a flow's two entries remembers which segments *its own* direction has sent ([`seen`](observe)); the state is a
//! function of both memories. So each direction writes its own entry only, no update is lost between two CPUs, and there
//! is no state that a lost race could leave wrong: a bit once seen stays seen.
//!
//! The states and their meaning are those of Linux's connection tracker; where it needs sequence numbers to believe a
//! reset, this does not have to: see [`observe`] on RST.

use crate::timeout::Class;

/// TCP header flag bits.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Open.
    pub const SYN: u8 = 0x02;
    /// Abort.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number is valid.
    pub const ACK: u8 = 0x10;
}

/// What a direction has sent so far, as bits of a flow entry's `seen`.
pub mod seen {
    /// A packet, of any protocol.
    pub const ANY: u8 = 0x01;
    /// A TCP SYN, with or without ACK.
    pub const SYN: u8 = 0x02;
    /// A TCP segment that is neither SYN nor RST.
    pub const DATA: u8 = 0x04;
    /// A TCP FIN.
    pub const FIN: u8 = 0x08;
    /// A TCP RST, and no other segment after it.
    pub const RST: u8 = 0x10;
    /// The connection was first seen in mid-stream.
    pub const MIDSTREAM: u8 = 0x20;
}

/// `before`, after one more segment with these header flags from the same direction.
///
/// A reset is believed tentatively: the flow falls to the short timeout of a closed connection, but a later segment from
/// the same side takes it back. A host that did reset sends nothing more, so a true reset stays; a forged one, which its
/// pretended sender knows nothing of, is undone by that sender's next segment. That is the tolerance that RFC 7857 section
/// 2.2 asks for, with no sequence numbers kept.
///
/// A segment with none of SYN, ACK and RST says nothing: every receiver drops it, in any state (RFC 9293 section 3.10.7).
#[inline(always)]
pub const fn observe(before: u8, flags: u8) -> u8 {
    if flags & flag::RST != 0 {
        return before | seen::ANY | seen::RST;
    }
    if flags & (flag::SYN | flag::ACK) == 0 {
        return before | seen::ANY;
    }
    let mut after = (before | seen::ANY) & !seen::RST;
    after |= if flags & flag::SYN != 0 { seen::SYN } else { seen::DATA };
    if flags & flag::FIN != 0 {
        after |= seen::FIN;
    }
    after
}

/// What the first segment of a flow leaves in its entry. An ACK or a reset is of a connection picked up in mid-stream, as
/// with conntrack's `nf_conntrack_tcp_loose`: after a restart with an empty table, established connections go on.
#[inline(always)]
pub const fn first(flags: u8) -> u8 {
    let opens = flags & flag::SYN != 0;
    let midstream = if !opens && flags & (flag::ACK | flag::RST) != 0 { seen::MIDSTREAM } else { 0 };
    observe(0, flags) | midstream
}

/// The state, as the timeout that it has.
#[inline(always)]
pub const fn class(request: u8, reply: u8) -> Class {
    let both = request | reply;
    if both & seen::RST != 0 {
        return Class::TcpClose;
    }
    let fins = (request & seen::FIN != 0) as u8 + (reply & seen::FIN != 0) as u8;
    match fins {
        2 => return Class::TcpTimeWait,
        1 if request & seen::FIN != 0 => return Class::TcpFinWait,
        1 => return Class::TcpCloseWait,
        _ => {}
    }
    if both & seen::MIDSTREAM != 0 {
        return Class::TcpEstablished;
    }
    if reply & seen::SYN == 0 && reply & seen::DATA == 0 {
        return Class::TcpSynSent;
    }
    if request & seen::DATA == 0 { Class::TcpSynRecv } else { Class::TcpEstablished }
}

/// Whether a SYN (without ACK) of the requesting side starts a flow in this state anew instead of belonging to it: a client reuses its
/// port right after the old connection has closed (RFC 9293 section 3.6.1; conntrack reopens in the same states).
#[inline(always)]
pub const fn reopens(flags: u8, state: Class) -> bool {
    opens(flags)
        && flags & flag::FIN == 0
        && matches!(state, Class::TcpTimeWait | Class::TcpClose | Class::SctpClosed | Class::SctpShutdown)
}

/// Whether these header flags try to open a connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}

#[cfg(test)]
mod tests {
    use super::*;
    use flag::{ACK, FIN, RST, SYN};

    /// Plays segments, `true` from the requesting side, and returns the class after the last.
    fn play(segments: &[(bool, u8)]) -> Class {
        let (mut request, mut reply) = (0, 0);
        for (i, &(from_client, flags)) in segments.iter().enumerate() {
            if i == 0 {
                request = first(flags);
                continue;
            }
            let side = if from_client { &mut request } else { &mut reply };
            *side = observe(*side, flags);
        }
        class(request, reply)
    }

    const OPEN: [(bool, u8); 3] = [(true, SYN), (false, SYN | ACK), (true, ACK)];

    fn after_open(more: &[(bool, u8)]) -> Class {
        let mut all = [(true, 0); 16];
        all[..3].copy_from_slice(&OPEN);
        all[3..3 + more.len()].copy_from_slice(more);
        play(&all[..3 + more.len()])
    }

    #[test]
    fn handshake() {
        assert_eq!(play(&OPEN[..1]), Class::TcpSynSent);
        assert_eq!(play(&[(true, SYN), (true, SYN)]), Class::TcpSynSent);
        assert_eq!(play(&OPEN[..2]), Class::TcpSynRecv);
        assert_eq!(play(&OPEN), Class::TcpEstablished);
    }

    #[test]
    fn simultaneous_open() {
        assert_eq!(play(&[(true, SYN), (false, SYN)]), Class::TcpSynRecv);
        assert_eq!(
            play(&[(true, SYN), (false, SYN), (true, SYN | ACK), (false, SYN | ACK), (true, ACK)]),
            Class::TcpEstablished
        );
    }

    #[test]
    fn half_closed_is_not_closed() {
        assert_eq!(after_open(&[(true, FIN | ACK)]), Class::TcpFinWait);
        assert_eq!(after_open(&[(true, FIN | ACK), (false, ACK), (false, ACK), (true, ACK)]), Class::TcpFinWait);
        assert_eq!(after_open(&[(false, FIN | ACK), (true, ACK)]), Class::TcpCloseWait);
    }

    #[test]
    fn both_sides_closed() {
        assert_eq!(after_open(&[(true, FIN | ACK), (false, FIN | ACK), (true, ACK)]), Class::TcpTimeWait);
    }

    #[test]
    fn mid_stream_counts_as_established() {
        assert_eq!(play(&[(true, ACK)]), Class::TcpEstablished);
        assert_eq!(play(&[(true, ACK), (true, FIN | ACK)]), Class::TcpFinWait);
    }

    #[test]
    fn a_segment_that_every_receiver_drops_opens_and_closes_nothing() {
        for flags in [0, FIN, 0x08, 0x20 | FIN] {
            assert_eq!(play(&[(true, flags)]), Class::TcpSynSent);
            assert_eq!(play(&[(true, flags), (true, flags), (true, flags)]), Class::TcpSynSent);
            assert_eq!(play(&[(true, flags), (false, RST | ACK)]), Class::TcpClose, "and is answered by a reset");
            assert_eq!(play(&[(true, SYN), (true, flags), (false, flags)]), Class::TcpSynSent);
            assert_eq!(after_open(&[(true, flags), (false, flags)]), Class::TcpEstablished);
            assert_eq!(after_open(&[(false, RST), (false, flags)]), Class::TcpClose, "it does not take a reset back");
        }
        assert_eq!(play(&[(true, RST)]), Class::TcpClose);
        assert_eq!(play(&[(true, RST), (true, ACK)]), Class::TcpEstablished, "a reset that was forged");
    }

    #[test]
    fn a_reset_stays_only_when_its_sender_falls_silent() {
        assert_eq!(after_open(&[(false, RST)]), Class::TcpClose);
        assert_eq!(after_open(&[(false, RST), (true, ACK)]), Class::TcpClose, "the other side's data proves nothing");
        assert_eq!(after_open(&[(false, RST), (false, ACK)]), Class::TcpEstablished, "a forged reset");
        assert_eq!(play(&[(true, SYN), (false, RST | ACK)]), Class::TcpClose, "refused");
    }

    #[test]
    fn a_syn_reopens_what_has_closed_and_nothing_else() {
        let closed = seen::ANY | seen::SYN | seen::DATA | seen::FIN;
        let live = seen::ANY | seen::SYN | seen::DATA;
        assert!(reopens(SYN, class(closed, closed)));
        assert!(reopens(SYN, class(live, live | seen::RST)));
        assert!(!reopens(SYN, class(live, live)), "a stray SYN must not end a live connection");
        assert!(!reopens(SYN, class(closed, live)), "a half-closed connection is live");
        assert!(!reopens(SYN | ACK, class(closed, closed)));
    }
}
