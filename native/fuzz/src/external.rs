//! The reader of the external term format.

use super::canonical::{canonical, equal};
use super::host::{Kept, foreign, word};
use super::memory;
use erlmcp_memory_core::external::is_sound;
use erlmcp_memory_core::packed::Writer;

const VERSION: u8 = 131;

/// Reads a term in the external format, as the host that is fuzzed does. `false`: it is refused.
pub fn read(term: &[u8], compound: bool, to: &mut Writer<Kept>) -> bool {
    is_sound(term) && write(&term[1..], compound, to)
}

/// Writes a sound term as the NIF does, which looks at the VM's term: what has a packed form of its
/// own gets it, what nests or is called the host keeps, and of the rest nothing depends on more than
/// its bytes.
fn write(term: &[u8], compound: bool, to: &mut Writer<Kept>) -> bool {
    match term {
        [97, value] => to.int(i64::from(*value)),
        [98, value @ ..] if value.len() == 4 => {
            let value = value.iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
            to.int(i64::from(value.cast_signed()));
        }
        [106] => to.nil(),
        [109, _, _, _, _, binary @ ..] => to.binary(binary),
        [100 | 118, _, _, name @ ..] | [115 | 119, _, name @ ..] => {
            match std::str::from_utf8(name).ok().and_then(word) {
                Some(word) => to.atom(word),
                None => return false,
            }
        }
        [104 | 105 | 107 | 108 | 116, ..] if !compound => return false,
        // STRING
        [107, high, low, bytes @ ..] if [*high, *low] == [0, 0] => {
            debug_assert!(bytes.is_empty());
            to.nil();
        }
        [104 | 105 | 107 | 108 | 116 | 112, ..] => foreign(&[&[VERSION], term].concat(), to),
        _ => to.opaque(&[&[VERSION], term].concat()),
    }
    true
}

/// What reading may take: some times as much as there are bytes.
const FACTOR: usize = 8;
const FIXED: usize = 4 << 10;

/// The bytes as they are, and behind a version byte.
pub fn run(input: &[u8]) {
    check(input);
    check(&[&[VERSION], input].concat());
}

fn check(term: &[u8]) {
    let mut writer = Writer::new();
    let read_it = memory::at_most(FIXED + FACTOR * term.len(), || {
        read(term, true, &mut writer)
    });
    if !read_it {
        return;
    }
    let packed = writer.finish();
    let again = canonical(packed.view());
    assert!(
        again.is_some_and(|again| equal(&again, &packed)),
        "what is read is canonical"
    );
    // One term exactly: not with a byte less or more.
    let refused = |term: &[u8]| !read(term, true, &mut Writer::new());
    assert!(refused(&term[..term.len() - 1]));
    assert!(refused(&[term, &[106]].concat()));
}
