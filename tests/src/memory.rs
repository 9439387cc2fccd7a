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
    let area = vec![1_usize; bytes / size_of::<usize>()];
    let mut random = Random::new(1);
    let (started, mut read) = (Instant::now(), 1);
    for _ in 0..READS {
        let place = random.below(area.len() / STRIDE) * STRIDE;
        // 1 each time, which nobody knows before it is read.
        read = area.get(place * read).copied().unwrap_or(1);
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
        // A short run may be interrupted; not each of several.
        let small = (0..5).map(|_| wait_ns(16 << 10)).fold(f64::MAX, f64::min);
        let large = wait_ns(128 << 20);
        assert!(large > 3.0 * small, "{large} ns, {small} ns");
    }
}
