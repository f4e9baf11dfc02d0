//! What is fuzzed, and what must hold. Each target takes any bytes; a property that does not hold
//! is a panic, and so is taking too much memory or stack.
//!
//! `src/bin` gives the targets to libFuzzer, and `native/core/tests/fuzz_corpus.rs` runs the corpus
//! through them with the other tests.

mod canonical;
mod external;
mod host;
mod memory;
mod packed;
mod snapshot;
mod terms;

pub use memory::Counting;

/// A target: its name, which is that of its corpus, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 3] = [
    ("snapshot", |input| leak_free(|| snapshot::run(input))),
    ("external", |input| leak_free(|| external::run(input))),
    ("packed", |input| leak_free(|| packed::run(input))),
];

/// Inputs to begin with, beside those that Erlang writes: target, name and bytes.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for number in 0..64u32 {
        // Numbers that look random; the same each time.
        let mut x = number.wrapping_mul(0x9e37_79b9) | 1;
        let script: Vec<u8> = (0..4 + number as usize * 6)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                (x >> 11) as u8
            })
            .collect();
        seeds.extend(snapshot::seeds(&script, number));
        seeds.push(("packed", format!("{number}"), packed::seed(&script)));
    }
    for (kind, snapshots) in [
        ("deepest", snapshot::deepest()),
        ("forged", snapshot::forged()),
    ] {
        for (number, snapshot) in snapshots.into_iter().enumerate() {
            seeds.push(("snapshot", format!("{kind}-{number}"), snapshot));
        }
    }
    seeds
}

/// Runs a target, which must give all memory back: its own, and every shared content.
fn leak_free(target: impl Fn()) {
    // What is made once for the whole program is made by the first run.
    if memory::growth(&target) != 0 {
        let growth = memory::growth(&target);
        assert_eq!(growth, 0, "bytes that were not given back");
    }
    assert_eq!(host::contents(), 0, "shared contents that nobody holds");
}
