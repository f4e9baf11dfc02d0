//! How many pauses of each length there were over time, for a heat map.
//!
//! The map covers a whole session in a bounded number of columns. When they are used up, each two
//! become one, and further ones take twice as long: so it takes the same memory after a minute and
//! after a month.

use crate::profile::histogram::{BUCKETS, BucketCounts};

/// The most columns of a map.
pub const COLUMNS: usize = 240;

/// The pauses of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Column {
    /// When it begins, in milliseconds of the clock that the samples go by.
    pub from: f64,
    /// When it ends.
    pub to: f64,
    /// Pauses by length: those of [`crate::profile::histogram::BOUNDS`], and longer ones.
    pub counts: [u32; BUCKETS],
}

/// The pauses of a session by time and length.
#[derive(Debug)]
pub struct Heat {
    columns: Vec<Column>,
    /// Samples that a column is for.
    width: u32,
    /// Samples in the last column.
    filled: u32,
    last: Option<(f64, BucketCounts)>,
}

impl Heat {
    /// An empty map, for counts that begin at zero.
    pub fn new() -> Self {
        Heat {
            columns: Vec::new(),
            width: 1,
            filled: 1,
            last: None,
        }
    }

    /// A sample at this time, and all pauses until then.
    pub fn push(&mut self, at: f64, counts: BucketCounts) {
        let (from, before) = match self.last.replace((at, counts)) {
            Some(last) => last,
            None => (at, BucketCounts::default()),
        };
        if self.filled == self.width {
            if self.columns.len() == COLUMNS {
                self.halve();
            }
            self.columns.push(Column {
                from,
                ..Column::default()
            });
            self.filled = 0;
        }
        if let Some(column) = self.columns.last_mut() {
            column.to = at;
            let fresh = counts.counts.iter().zip(before.counts);
            for (count, (now, before)) in column.counts.iter_mut().zip(fresh) {
                let more = now.saturating_sub(before);
                *count = count.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
            }
        }
        self.filled += 1;
    }

    fn halve(&mut self) {
        self.columns = merged(&self.columns, 2);
        self.width *= 2;
        self.filled = self.width;
    }

    /// The columns, the oldest first.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Bytes of memory behind it.
    pub fn heap_bytes(&self) -> usize {
        crate::heap::block(self.columns.capacity() * size_of::<Column>())
    }
}

impl Default for Heat {
    fn default() -> Self {
        Self::new()
    }
}

/// One column for this many each.
pub fn merged(columns: &[Column], each: usize) -> Vec<Column> {
    let merge = |group: &[Column]| {
        let mut all = group[0];
        for column in &group[1..] {
            all.to = column.to;
            for (count, more) in all.counts.iter_mut().zip(column.counts) {
                *count = count.saturating_add(more);
            }
        }
        all
    };
    columns.chunks(each.max(1)).map(merge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: u64) -> BucketCounts {
        let mut counts = BucketCounts::default();
        counts.counts[3] = all;
        counts
    }

    fn total(heat: &Heat) -> u64 {
        let count = |column: &Column| column.counts.iter().map(|&n| u64::from(n)).sum::<u64>();
        heat.columns().iter().map(count).sum()
    }

    #[test]
    fn a_month_takes_no_more_columns_and_loses_no_pause() {
        let mut heat = Heat::new();
        for sample in 0..100_000u64 {
            heat.push(sample as f64, counts(3 * sample));
            assert!(heat.columns().len() <= COLUMNS);
            if sample % 9_999 == 0 {
                assert_eq!(total(&heat), 3 * sample);
            }
        }
        assert!(heat.columns().len() > COLUMNS / 2 - 1);
        assert_eq!(heat.columns()[0].from, 0.0);
        let joined = heat
            .columns()
            .windows(2)
            .all(|two| two[0].to == two[1].from);
        assert!(joined);
        assert_eq!(heat.columns().last().map(|last| last.to), Some(99_999.0));
    }

    #[test]
    fn counts_that_begin_anew_are_not_below_zero() {
        let mut heat = Heat::new();
        heat.push(0.0, counts(7));
        heat.push(1.0, counts(2));
        heat.push(2.0, counts(u64::MAX));
        let column = |at: usize| heat.columns()[at].counts[3];
        assert_eq!([column(0), column(1), column(2)], [7, 0, u32::MAX]);
    }
}
