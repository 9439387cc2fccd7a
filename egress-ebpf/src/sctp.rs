//! What an SCTP packet's first chunk does to its association, told in TCP's words.
//!
//! The states of an association that matter to a timeout are those of a connection: opening, open, closing, aborted. So chunks
//! are mapped to the TCP flags of the same effect, and [`tcp::observe`](crate::tcp::observe) keeps count of them.

use crate::tcp::{flag, seen};
use crate::timeout::Class;

/// The flags of a packet whose first chunk has this type (RFC 9260 section 3.2).
#[inline(always)]
pub const fn flags(chunk_type: u8) -> u8 {
    match chunk_type {
        1 => flag::SYN,                 // INIT
        2 => flag::SYN | flag::ACK,     // INIT ACK
        6 => flag::RST,                 // ABORT
        7 | 8 => flag::FIN | flag::ACK, // SHUTDOWN, SHUTDOWN ACK
        14 => flag::RST,                // SHUTDOWN COMPLETE: nothing comes after it
        _ => flag::ACK,
    }
}

/// The state, as the timeout that it has.
#[inline(always)]
pub const fn class(request: u8, reply: u8) -> Class {
    let both = request | reply;
    if both & seen::RST != 0 {
        Class::SctpClosed
    } else if both & seen::FIN != 0 {
        Class::SctpShutdown
    } else if both & seen::MIDSTREAM == 0 && (reply & seen::ANY == 0 || request & seen::DATA == 0) {
        Class::SctpOpening
    } else {
        Class::SctpEstablished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp;

    #[test]
    fn an_association_from_init_to_shutdown_complete() {
        let (mut request, mut reply) = (tcp::first(flags(1)), 0);
        assert_eq!(class(request, reply), Class::SctpOpening);
        reply = tcp::observe(reply, flags(2));
        assert_eq!(class(request, reply), Class::SctpOpening);
        request = tcp::observe(request, flags(10));
        assert_eq!(class(request, reply), Class::SctpEstablished);
        reply = tcp::observe(reply, flags(11));
        request = tcp::observe(request, flags(0));
        assert_eq!(class(request, reply), Class::SctpEstablished);
        request = tcp::observe(request, flags(7));
        reply = tcp::observe(reply, flags(8));
        assert_eq!(class(request, reply), Class::SctpShutdown);
        request = tcp::observe(request, flags(14));
        assert_eq!(class(request, reply), Class::SctpClosed);
    }

    #[test]
    fn an_abort_ends_it_and_mid_stream_counts_as_open() {
        assert_eq!(class(tcp::first(flags(0)), 0), Class::SctpEstablished);
        assert_eq!(class(tcp::first(flags(0)), tcp::observe(0, flags(6))), Class::SctpClosed);
    }
}
