//! Digests of values: equal values have equal ones, in whatever form they are stored.
//!
//! A value that is not a map has a hash of its bytes. That of a map is made of the sum over its
//! entries, so that it depends neither on their order nor on how they are dealt out over pages and
//! nodes: one run of bytes, a trie, and a trie with another history have the same. A node keeps
//! its sum, so that the digest of a changed map costs what the change did.

use super::node;
use crate::packed::{Anchor, Entries, Item, Links, Node, Page, Sum, Target, View, item};
use foldhash::quality::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);

/// The entries of a page that are being summed up.
struct Pairs<'a, A> {
    entries: Entries<'a>,
    links: &'a Links<A>,
    /// Of the key whose value is being looked at.
    key: u64,
    sum: u64,
}

impl<'a, A> Pairs<'a, A> {
    fn new(page: Page<'a>, links: &'a Links<A>) -> Self {
        Pairs {
            entries: page.entries(),
            links,
            key: 0,
            sum: 0,
        }
    }
}

/// Where the walk continues. Nesting uses no stack of the thread.
enum Frame<'a, A> {
    /// In a map that is one run of bytes.
    Map(Pairs<'a, A>),
    /// In the page of a leaf.
    Leaf(&'a Sum, Pairs<'a, A>),
    /// In the children of a branch.
    Branch(&'a Sum, &'a [Option<Arc<Node<A>>>], u64),
    /// Above the root of a trie.
    Trie,
}

fn of_map(sum: u64) -> u64 {
    HASHER.hash_one(sum)
}

/// The digest of a value, or the frames that lead to it.
fn open<'a, A: Anchor>(value: View<'a, A>, frames: &mut Vec<Frame<'a, A>>) -> Option<u64> {
    let value = value.resolve();
    match item(value.bytes, &mut 0) {
        Ok(Item::Map(page)) => frames.push(Frame::Map(Pairs::new(page, value.links))),
        Ok(Item::Trie(_)) => match value.target() {
            Some(Target::Trie(node)) => {
                if let Some(sum) = node.sum().get() {
                    return Some(of_map(sum));
                }
                frames.push(Frame::Trie);
                open_node(node, frames);
            }
            _ => return Some(0),
        },
        _ => return Some(HASHER.hash_one(value.bytes)),
    }
    None
}

fn open_node<'a, A: Anchor>(node: &'a Node<A>, frames: &mut Vec<Frame<'a, A>>) {
    match node {
        Node::Leaf(packed, sum) => {
            if let Some(page) = Page::of(packed.bytes()) {
                frames.push(Frame::Leaf(sum, Pairs::new(page, packed.links())));
            }
        }
        Node::Branch { children, sum, .. } => {
            frames.push(Frame::Branch(sum, children.as_slice(), 0));
        }
    }
}

/// The digest of a value, the same for equal values as long as the process runs.
pub fn digest<A: Anchor>(value: View<'_, A>) -> u64 {
    let mut frames = Vec::new();
    // The digest of the value that was looked at last, or the sum of the node.
    let mut found = open(value, &mut frames);
    while let Some(frame) = frames.last_mut() {
        match frame {
            Frame::Map(pairs) | Frame::Leaf(_, pairs) => {
                if let Some(value) = found.take() {
                    let entry = HASHER.hash_one((pairs.key, value));
                    pairs.sum = pairs.sum.wrapping_add(entry);
                }
                if let Some((key, value)) = pairs.entries.next() {
                    pairs.key = HASHER.hash_one(key);
                    let value = View::new(value, pairs.links);
                    found = open(value, &mut frames);
                    continue;
                }
                found = Some(match frame {
                    Frame::Leaf(kept, pairs) => {
                        kept.set(pairs.sum);
                        pairs.sum
                    }
                    Frame::Map(pairs) => of_map(pairs.sum),
                    _ => 0,
                });
                frames.pop();
            }
            Frame::Branch(kept, children, sum) => {
                *sum = sum.wrapping_add(found.take().unwrap_or(0));
                match children.split_first() {
                    Some((child, rest)) => {
                        *children = rest;
                        if let Some(child) = child {
                            found = child.sum().get();
                            if found.is_none() {
                                open_node(child, &mut frames);
                            }
                        }
                    }
                    None => {
                        kept.set(*sum);
                        found = Some(*sum);
                        frames.pop();
                    }
                }
            }
            Frame::Trie => {
                found = found.map(of_map);
                frames.pop();
            }
        }
    }
    found.unwrap_or(0)
}

/// Whether two values are equal, in whatever form they are stored. What both have in common is not
/// looked at.
pub fn equal<A: Anchor>(a: View<'_, A>, b: View<'_, A>) -> bool {
    let mut values = vec![(a, b)];
    let mut nodes: Vec<(&Node<A>, &Node<A>)> = Vec::new();
    loop {
        if let Some((a, b)) = nodes.pop() {
            match (a, b) {
                _ if std::ptr::eq(a, b) => {}
                _ if a.len() != b.len() => return false,
                (Node::Branch { children: a, .. }, Node::Branch { children: b, .. }) => {
                    for (a, b) in a.iter().zip(b.iter()) {
                        match (a, b) {
                            (None, None) => {}
                            (Some(a), Some(b)) => nodes.push((a, b)),
                            _ => return false,
                        }
                    }
                }
                _ => {
                    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
                    a.for_each(&mut |key, value| of_a.push((key, value)));
                    b.for_each(&mut |key, value| of_b.push((key, value)));
                    if !pair_up(of_a, of_b, &mut values) {
                        return false;
                    }
                }
            }
            continue;
        }
        let Some((a, b)) = values.pop() else {
            return true;
        };
        let (a, b) = (a.resolve(), b.resolve());
        // An id stands for one thing only, as long as that exists.
        if a.bytes == b.bytes {
            continue;
        }
        if let (Some(Target::Trie(a)), Some(Target::Trie(b))) = (a.target(), b.target()) {
            nodes.push((a, b));
            continue;
        }
        let (Some(len), Some(other)) = (super::len_of(a), super::len_of(b)) else {
            return false;
        };
        if len != other {
            return false;
        }
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        node::for_each(a, &mut |key, value| of_a.push((key, value)));
        node::for_each(b, &mut |key, value| of_b.push((key, value)));
        if !pair_up(of_a, of_b, &mut values) {
            return false;
        }
    }
}

type Entry<'a, A> = (&'a [u8], View<'a, A>);

/// Adds the values of equal keys; `false` where the keys are not the same.
fn pair_up<'a, A: Anchor>(
    mut a: Vec<Entry<'a, A>>,
    mut b: Vec<Entry<'a, A>>,
    values: &mut Vec<(View<'a, A>, View<'a, A>)>,
) -> bool {
    a.sort_unstable_by_key(|(key, _)| *key);
    b.sort_unstable_by_key(|(key, _)| *key);
    a.len() == b.len()
        && a.into_iter().zip(b).all(|((a_key, a), (b_key, b))| {
            values.push((a, b));
            a_key == b_key
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{in_parts, put, remove};
    use crate::packed::{Packed, Writer};
    use std::convert::Infallible;

    type Value = Packed<Infallible>;

    fn map(entries: &[(i64, &Value)]) -> Value {
        let mut writer = Writer::new();
        let mut map = writer.begin_map();
        for (key, _) in entries {
            writer.int(*key);
            writer.end_key(&map);
        }
        assert!(writer.end_keys(&map));
        while let Some(index) = writer.next_value(&mut map) {
            writer.packed(entries[index].1);
        }
        writer.finish()
    }

    fn text(len: usize) -> Value {
        let mut writer = Writer::new();
        writer.binary(&vec![7; len]);
        writer.finish()
    }

    fn key(key: i64) -> Value {
        let mut writer = Writer::new();
        writer.int(key);
        writer.finish()
    }

    fn nested(count: i64) -> Value {
        let (short, long) = (text(3), text(3_000));
        let inner: Vec<_> = (0..count % 90).map(|n| (n, &short)).collect();
        let inner = map(&inner);
        let values = [&short, &long, &inner];
        let all: Vec<_> = (0..count).map(|n| (n, values[n as usize % 3])).collect();
        map(&all)
    }

    fn same(a: &Value, b: &Value) -> bool {
        let (same, equal) = (
            digest(a.view()) == digest(b.view()),
            equal(a.view(), b.view()),
        );
        assert_eq!(same, equal);
        equal
    }

    #[test]
    fn a_map_in_parts_is_the_map_in_one_piece() {
        for count in [0, 1, 5, 80, 700] {
            let whole = nested(count);
            let parts = in_parts(nested(count), 0);
            assert!(same(&whole, &parts), "{count}");
            assert!(!same(&nested(count + 1), &parts), "{count}");
        }
    }

    #[test]
    fn how_a_map_became_what_it_is_makes_no_difference() {
        let whole = nested(600);
        let mut changed = in_parts(nested(600), 0);
        let (long, short) = (text(5_000), text(3));
        let paths: Vec<_> = (0..600).step_by(7).map(key).collect();
        for path in &paths {
            changed = put(&changed, &[path.view()], long.view(), &[]).unwrap();
        }
        assert!(!same(&whole, &changed));
        for (path, n) in paths.iter().zip((0..600).step_by(7)) {
            let was = whole.view().find(&[key(n)]).unwrap().to_packed();
            changed = put(&changed, &[path.view()], was.view(), &[]).unwrap();
        }
        assert!(same(&whole, &changed));
        // Grown and shrunk again.
        let more: Vec<_> = (1_000..3_000).map(key).collect();
        for path in &more {
            changed = put(&changed, &[path.view()], short.view(), &[]).unwrap();
        }
        for path in &more {
            changed = remove(&changed, &[path.view()]).unwrap();
        }
        assert!(same(&whole, &changed));
    }

    #[test]
    fn values_without_entries_are_told_apart() {
        let values = [text(0), text(1), map(&[]), key(0), key(1)];
        for (n, a) in values.iter().enumerate() {
            for (m, b) in values.iter().enumerate() {
                assert_eq!(same(a, b), n == m);
            }
        }
    }
}
