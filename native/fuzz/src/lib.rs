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
    for (number, fields) in snapshot::forged().into_iter().enumerate() {
        seeds.push(("snapshot", format!("forged-{number}"), fields));
    }
    for way in 0..terms::WAYS {
        seeds.push(("snapshot", format!("deep-{way}"), snapshot::deep(100, way)));
    }
    seeds
}

/// Values that nest in each way, at most this many levels deep, through snapshots.
pub fn deep(levels: usize) {
    for way in 0..terms::WAYS {
        leak_free(|| snapshot::run(&snapshot::deep(levels, way)));
    }
}

/// As many entries as fit into a snapshot, all of one key.
pub fn equal_keys() {
    leak_free(|| snapshot::equal_keys(11_000_000));
}

/// As many shared contents, and as many references, as a snapshot may have.
pub fn many() {
    leak_free(|| snapshot::many(1 << 17, 1 << 17));
    leak_free(|| snapshot::many(1, 1 << 20));
}

/// Runs a target, which must give all memory back: its own, and every shared content.
fn leak_free(target: impl Fn()) {
    let run = || {
        target();
        assert_eq!(
            host::contents_left(),
            0,
            "shared contents that nobody holds"
        );
    };
    // What is made once for the whole program is made by the first run.
    if memory::growth(run) != 0 {
        assert_eq!(memory::growth(run), 0, "bytes that were not given back");
    }
}
