//! The corpus of `native/fuzz` through the targets that are fuzzed, so that what was found once is
//! looked for in each run of the tests. See `native/fuzz/README.md`.

#[path = "../../fuzz/src/lib.rs"]
#[allow(missing_docs)]
mod fuzz;

use std::path::Path;

#[global_allocator]
static ALLOCATOR: fuzz::Counting = fuzz::Counting;

/// What the VM gives a dirty scheduler by default, where large snapshots are read: 40 kilowords.
const STACK: usize = 40 << 13;

/// Runs `body` on a thread with that stack.
fn on_a_small_stack<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(body);
    match thread.expect("a thread").join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn run(target: &str, name: &str, input: Vec<u8>) {
    let (_, run) = *fuzz::TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    // The last one is that of a failure.
    println!("{target} {name}");
    on_a_small_stack(move || run(&input));
}

fn replay(target: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut inputs: Vec<_> = std::fs::read_dir(folder.join(target))
        .expect("the corpus of the target")
        .map(|entry| entry.expect("a file").path())
        .collect();
    assert!(inputs.len() > 20, "a corpus of {} files", inputs.len());
    inputs.sort();
    for path in inputs {
        let input = std::fs::read(&path).expect("a file");
        run(target, &path.to_string_lossy(), input);
    }
}

#[test]
fn snapshots_that_were_found_are_read_as_they_must_be() {
    replay("snapshot");
}

#[test]
fn external_terms_that_were_found_are_read_as_they_must_be() {
    replay("external");
}

#[test]
fn packed_bytes_that_were_found_are_read_as_they_must_be() {
    replay("packed");
}

#[test]
fn what_the_seeds_are_made_of_is_read_as_it_must_be() {
    for (target, name, input) in on_a_small_stack(fuzz::seeds) {
        run(target, &name, input);
    }
}

#[test]
fn values_as_deep_as_they_may_be_are_read_on_a_small_stack() {
    on_a_small_stack(|| fuzz::deep(erlmcp_memory_core::packed::MAX_DEPTH));
}

#[test]
fn millions_of_equal_keys_are_refused_before_they_take_memory() {
    on_a_small_stack(fuzz::equal_keys);
}

#[test]
fn as_many_shares_and_references_as_may_be_are_read() {
    on_a_small_stack(fuzz::many);
}
