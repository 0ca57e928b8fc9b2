//! The size of this machine's last-level cache. A gradient that does not fit is written by non-temporal stores.

use std::thread::available_parallelism;

/// Bytes of the last-level cache where the system does not tell. Few processors have less.
const UNKNOWN: usize = 8 << 20;

/// The most bytes of the last-level cache that count for each CPU of this process. A virtual machine sees the
/// whole cache of a processor, most of whose CPUs belong to others. Hardly any processor has more for each CPU.
const SHARE: usize = 16 << 20;

/// Bytes of the last-level cache that this process may count on.
pub fn last_level() -> usize {
    let share = SHARE * available_parallelism().map_or(1, usize::from);
    largest().unwrap_or(UNKNOWN).min(share)
}

/// Bytes of the largest cache of the first CPU, where the system tells.
#[cfg(target_os = "linux")]
fn largest() -> Option<usize> {
    let sizes = (0..8).filter_map(|i| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size");
        bytes(std::fs::read_to_string(path).ok()?.trim())
    });
    sizes.max()
}

/// Only Linux tells.
#[cfg(not(target_os = "linux"))]
fn largest() -> Option<usize> {
    None
}

/// `32768K` in bytes.
#[cfg(any(target_os = "linux", test))]
fn bytes(text: &str) -> Option<usize> {
    let (number, unit) = match text.strip_suffix(['K', 'M']) {
        Some(number) => (number, if text.ends_with('K') { 1 << 10 } else { 1 << 20 }),
        None => (text, 1),
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("32768K"), Some(32 << 20));
        assert_eq!(bytes("2M"), Some(2 << 20));
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("many"), None);
        assert!(last_level() >= 1 << 16);
    }
}
