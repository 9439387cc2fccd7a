//! How a CRC32c follows a change of the bytes it covers, without reading the others.
//!
//! A CRC is linear: the CRCs of two messages of one length differ by a function of the messages' difference alone. So when
//! four bytes at the start of a message of `n` bytes change by `d` (exclusive or), its CRC changes by `d * x^(8 n)` modulo the
//! polynomial, and `x^(8 n)` takes one multiplication for each bit set in `n`. SCTP's checksum (RFC 9260 appendix A) covers no
//! address, and of what a NAT changes only the ports: the first four bytes.
//!
//! Polynomials are in reflected order: bit 31 is the coefficient of x^0.

/// The Castagnoli polynomial 0x1EDC6F41, reflected, its x^32 left out.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Longest message: an IP packet.
const LENGTH_BITS: u32 = 17;

/// `a * b` modulo the polynomial.
#[inline(always)]
pub const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut shifted = b;
    let mut bit = 0;
    while bit < 32 {
        product ^= shifted & select(a >> (31 - bit));
        shifted = (shifted >> 1) ^ (POLYNOMIAL & select(shifted));
        bit += 1;
    }
    product
}

/// All ones if the lowest bit is set, else zero: an exclusive or without a branch.
#[inline(always)]
const fn select(bits: u32) -> u32 {
    0_u32.wrapping_sub(bits & 1)
}

/// What exclusive-or makes the CRC of a message of `length` bytes right again after its first four bytes changed by `change`
/// (exclusive or; the first byte is the lowest).
///
/// The result, too, is for the four bytes as SCTP stores them, lowest first. `length` counts from the first changed byte to the
/// end, up to 131,071. `multiply` is [`multiply`], by whichever call suits the caller.
#[inline(always)]
pub fn change(change: u32, length: u32, multiply: impl Fn(u32, u32) -> u32) -> u32 {
    let mut factor = change;
    // x^8, then squared again and again: x^(8 * 2^i).
    let mut power = 1 << (31 - 8);
    for bit in 0..LENGTH_BITS {
        if length >> bit & 1 != 0 {
            factor = multiply(power, factor);
        }
        power = multiply(power, power);
    }
    factor
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;

    /// The CRC bit by bit, as the definition says.
    fn whole(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 != 0 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_definition_gives_the_check_value() {
        assert_eq!(whole(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn following_a_change_equals_computing_anew(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..3000),
            new in any::<[u8; 4]>(),
        ) {
            let before = whole(&bytes);
            let old: [u8; 4] = bytes[..4].try_into().unwrap();
            bytes[..4].copy_from_slice(&new);
            let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
            let length = u32::try_from(bytes.len()).unwrap();
            prop_assert_eq!(before ^ change(difference, length, multiply), whole(&bytes));
        }
    }

    #[test]
    fn the_longest_packet() {
        let mut bytes = std::vec![0x5a_u8; 65535];
        let before = whole(&bytes);
        bytes[1] ^= 0x80;
        assert_eq!(before ^ change(0x8000, 65535, multiply), whole(&bytes));
    }
}
