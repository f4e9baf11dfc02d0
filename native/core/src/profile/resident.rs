//! What the operating system counts for this process.

/// Bytes of the process that are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// All of them: the resident set size.
    pub total: usize,
    /// Of these, what belongs to files and to shared memory: programs, and where the VM makes
    /// machine code, that code.
    pub mapped: usize,
}

impl Resident {
    /// From the text of `/proc/self/statm`, in pages of this size; `None` where it does not say.
    pub fn of_statm(text: &str, page: usize) -> Option<Self> {
        let mut pages = text
            .split_ascii_whitespace()
            .skip(1)
            .map(str::parse::<usize>);
        let mut bytes = || pages.next()?.ok()?.checked_mul(page);
        Some(Resident {
            total: bytes()?,
            mapped: bytes()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_are_not_there_are_none() {
        let read = Resident {
            total: 10042 << 12,
            mapped: 3761 << 12,
        };
        let of = |text| Resident::of_statm(text, 4096);
        assert_eq!(of("526985 10042 3761 651 0 14827 0\n"), Some(read));
        for broken in ["", "1 2", "1 x 3", "1 2 -3", "1 2 99999999999999999999"] {
            assert_eq!(of(broken), None);
        }
        assert_eq!(Resident::of_statm("1 2 3", usize::MAX), None);
    }
}
