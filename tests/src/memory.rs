//! How long this machine's memory lets one wait.

use std::time::Instant;

use crate::random::Random;

/// Reads that are timed.
const READS: u32 = 1 << 18;
/// Words between two places that are read: 128 bytes.
const STRIDE: usize = 16;

/// Nanoseconds that one read takes anywhere in so many bytes, of which most are in no cache, when its place is known from the
/// read before: nothing overlaps.
pub fn wait_ns(bytes: usize) -> f64 {
    // Written, for behind memory that is only asked for there is one page of zeros.
    let area = vec![1_u64; bytes / size_of::<u64>()];
    let mut random = Random::new(1);
    let (started, mut read) = (Instant::now(), 1);
    for _ in 0..READS {
        let place = random.below(area.len() / STRIDE) * STRIDE;
        // 1 each time, which nobody knows before it is read.
        read = area.get(place * read).copied().map_or(1, |word| word as usize);
    }
    // The reads are for nothing, which the compiler must not find out.
    std::hint::black_box(read);
    started.elapsed().as_nanos() as f64 / f64::from(READS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_fits_no_cache_is_slower_than_what_does() {
        let (small, large) = (wait_ns(16 << 10), wait_ns(512 << 20));
        assert!(large > 3.0 * small, "{large} ns, {small} ns");
    }
}
