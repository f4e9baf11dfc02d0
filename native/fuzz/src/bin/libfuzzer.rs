//! The targets for libFuzzer: the variable `FUZZ_TARGET` names the one that is fuzzed.

#![no_main]

use erlmcp_memory_fuzz::{Counting, TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    *TARGETS
        .iter()
        .find(|(target, _)| *target == name)
        .expect("FUZZ_TARGET names a target")
});

/// Lets libFuzzer's handler run, and keep the input, when the stack is full.
fn own_stack_for_signals() {
    const BYTES: usize = 1 << 20;
    // SAFETY: the memory is never freed, and the action is the default one; libFuzzer puts its
    // handler in, which stays on the stack for signals.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: Box::leak(vec![0u8; BYTES].into_boxed_slice())
                .as_mut_ptr()
                .cast(),
            ss_flags: 0,
            ss_size: BYTES,
        };
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_ONSTACK;
        assert_eq!(libc::sigaltstack(&stack, std::ptr::null_mut()), 0);
        assert_eq!(
            libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()),
            0
        );
    }
}

fuzz_target!(
    init: {
        own_stack_for_signals();
        LazyLock::force(&TARGET);
    },
    |input: &[u8]| (TARGET.1)(input)
);
