//! The caches of this machine: what does not fit into them is written past them.

use std::fs::read_to_string;
use std::sync::OnceLock;

/// Bytes of the last cache where the system does not say: few processors have less.
const UNKNOWN: usize = 8 << 20;

/// Bytes of the last cache before memory, that of the first CPU; read once.
pub fn last_level() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let sizes = (0..8).filter_map(|i| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size");
            bytes(read_to_string(path).ok()?.trim())
        });
        sizes.max().unwrap_or(UNKNOWN)
    })
}

/// `32768K` in bytes.
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
