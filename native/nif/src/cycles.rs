//! Pooled states that keep themselves.
//!
//! A pooled state is the one value that changes after others refer to it, so every cycle of owners
//! leads through one. Counting owners does not free a cycle. So, when a pooled state that a value
//! refers to loses an owner and has others, the reaper looks at what leads back to it: of all that
//! it reaches, the owners that are found on the way are counted (trial deletion, in the manner of
//! Bacon and Rajan, "Concurrent Cycle Collection in Reference Counted Systems", 2001). What has no
//! more owners than these, and is not reached by anything that has, is garbage; its pooled states
//! give up what they hold, and the rest follows by itself.
//!
//! While owners are counted, the pooled states on the way are locked, so that nobody comes by one
//! of them by way of another. What lies between them never changes, and whoever has a part of it can
//! come by what that part reaches and nothing else. So all is counted from above to below, and an
//! owner that moves down meanwhile is met below. Where a pooled state is in use, nothing is freed;
//! [`sweep`] comes back to it.

use crate::connection::ConnectionState;
use crate::park::Kept;
use crate::pool::{Cell, Held};
use crate::reaper;
use crate::share::{Holder, Shared};
use crate::state::Linked;
use crate::terms::Anchor;
use erlmcp_memory_core::map::Node as Trie;
use erlmcp_memory_core::packed::{Link, Links, Packed, Target};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// An owner that goes, of something that may be part of a cycle.
pub enum Suspect {
    Pooled(Arc<Cell>),
    State(Arc<Linked>),
    Shared(Arc<Shared>),
    Holder(Holder),
    Parked(Arc<Kept>),
}

/// Whether an anchor keeps a pooled state alive.
pub fn leads_to_pooled(anchor: &Anchor) -> bool {
    match anchor {
        Anchor::Pooled(_) => true,
        Anchor::Share(share) => share.shared().host.is_cyclic(),
        Anchor::State(state) => state.linked().is_cyclic(),
        Anchor::Parked(parked) => parked.kept().is_cyclic(),
        Anchor::Buffer(_) | Anchor::Foreign(_) => false,
    }
}

/// Has an owner dropped, and looked at what it leaves.
pub fn suspect(suspect: Suspect) {
    reaper::examine(suspect);
}

/// Pooled states that values refer to.
static CELLS: Mutex<Vec<Weak<Cell>>> = Mutex::new(Vec::new());

/// Notes a pooled state that a value refers to from now on.
pub fn note(cell: &Arc<Cell>) {
    let mut cells = CELLS.lock();
    if cells.len() == cells.capacity() {
        cells.retain(|cell| cell.strong_count() > 0);
    }
    cells.push(Arc::downgrade(cell));
}

/// Has all of them looked at: those that somebody looked at just when they became garbage were
/// taken for alive.
pub fn sweep() {
    let cells = std::mem::take(&mut *CELLS.lock());
    for cell in cells.iter().filter_map(Weak::upgrade) {
        note(&cell);
        suspect(Suspect::Pooled(cell));
    }
}

/// Drops an owner, and frees the cycles that it leaves.
pub fn examine(suspect: Suspect) {
    let mut graph = Graph::default();
    let mut cells = Vec::new();
    match &suspect {
        Suspect::Pooled(cell) => cells.push(Arc::downgrade(cell)),
        Suspect::State(linked) => graph.reach(Node::State(Arc::clone(linked))),
        Suspect::Shared(shared) => graph.reach(Node::Shared(Arc::clone(shared))),
        Suspect::Parked(kept) => graph.reach(Node::Parked(Arc::clone(kept))),
        Suspect::Holder(holder) => graph.reach(Node::Shared(Arc::clone(holder.shared()))),
    }
    graph.walk(false);
    cells.extend(graph.entries.iter().filter_map(|entry| match &entry.node {
        Node::Cell(cell) => Some(Arc::downgrade(cell)),
        _ => None,
    }));
    drop(graph);
    drop(suspect);
    for cell in cells {
        free_if_garbage(&cell);
    }
}

fn free_if_garbage(cell: &Weak<Cell>) {
    let mut graph = Graph::default();
    match cell.upgrade() {
        // Without links it keeps nothing alive, least of all itself.
        Some(cell) if cell.may_have_links() => graph.reach(Node::Cell(cell)),
        _ => return,
    }
    graph.walk(true);
    for content in graph.garbage() {
        drop(content);
    }
}

/// A thing with owners.
enum Node {
    Cell(Arc<Cell>),
    State(Arc<Linked>),
    Shared(Arc<Shared>),
    Parked(Arc<Kept>),
    Blob(Arc<Packed<Anchor>>),
    Trie(Arc<Trie<Anchor>>),
    Links(Arc<[Link<Anchor>]>),
}

struct Entry {
    /// Keeps it alive meanwhile, and is one owner more.
    node: Node,
    /// Owners that were found.
    found: usize,
    /// What it owns.
    owns: Vec<usize>,
}

/// What is reached from a thing.
#[derive(Default)]
struct Graph {
    entries: Vec<Entry>,
    /// Entries by the addresses of their nodes.
    known: HashMap<usize, usize>,
    locked: Vec<(usize, Held)>,
    /// Something could not be locked: somebody uses it.
    in_use: bool,
}

impl Node {
    fn address(&self) -> usize {
        match self {
            Node::Cell(cell) => Arc::as_ptr(cell).addr(),
            Node::State(state) => Arc::as_ptr(state).addr(),
            Node::Shared(shared) => Arc::as_ptr(shared).addr(),
            Node::Parked(kept) => Arc::as_ptr(kept).addr(),
            Node::Blob(blob) => Arc::as_ptr(blob).addr(),
            Node::Trie(node) => Arc::as_ptr(node).addr(),
            Node::Links(links) => Arc::as_ptr(links).addr(),
        }
    }

    /// All owners but the graph.
    fn owners(&self) -> usize {
        let all = match self {
            Node::Cell(cell) => Arc::strong_count(cell),
            Node::State(state) => Arc::strong_count(state),
            Node::Shared(shared) => shared.owners(),
            Node::Parked(kept) => Arc::strong_count(kept),
            Node::Blob(blob) => Arc::strong_count(blob),
            Node::Trie(node) => Arc::strong_count(node),
            Node::Links(links) => Arc::strong_count(links),
        };
        all - 1
    }
}

impl Graph {
    /// The entry of a node.
    fn entry(&mut self, node: Node) -> usize {
        let next = self.entries.len();
        let index = *self.known.entry(node.address()).or_insert(next);
        if index == next {
            self.entries.push(Entry {
                node,
                found: 0,
                owns: Vec::new(),
            });
        }
        index
    }

    fn reach(&mut self, node: Node) {
        self.entry(node);
    }

    /// Finds all that is reached; `into_cells`: through pooled states, too, which are locked.
    fn walk(&mut self, into_cells: bool) {
        let mut next = 0;
        while next < self.entries.len() && !self.in_use {
            let mut owned = Vec::new();
            match &self.entries[next].node {
                Node::Cell(cell) if into_cells => match cell.try_lock() {
                    Some(held) => {
                        if let Some(links) = held.links() {
                            each_owned(links, &mut owned);
                        }
                        self.locked.push((next, held));
                    }
                    None => self.in_use = true,
                },
                Node::Cell(_) => {}
                Node::State(linked) => each_owned(linked.state().fields().view().links, &mut owned),
                Node::Shared(shared) => each_owned(shared.packed().links(), &mut owned),
                Node::Parked(kept) => each_owned(kept.packed().links(), &mut owned),
                Node::Blob(blob) => each_owned(blob.links(), &mut owned),
                Node::Trie(node) => match &**node {
                    Trie::Leaf(page, _) => each_owned(page.links(), &mut owned),
                    Trie::Branch { children, .. } => {
                        let children = children.iter().flatten();
                        owned.extend(children.map(|child| Node::Trie(Arc::clone(child))));
                    }
                },
                Node::Links(links) => owned.extend(links.iter().filter_map(|(_, t)| target(t))),
            }
            for node in owned {
                let index = self.entry(node);
                self.entries[index].found += 1;
                self.entries[next].owns.push(index);
            }
            next += 1;
        }
    }

    /// What the pooled states hold that nothing outside of the graph owns. They are empty then.
    fn garbage(mut self) -> Vec<ConnectionState> {
        if self.in_use {
            return Vec::new();
        }
        let mut alive = vec![false; self.entries.len()];
        let mut rest = Vec::new();
        for index in self.top_down() {
            let entry = &self.entries[index];
            if entry.node.owners() > entry.found {
                rest.push(index);
            }
        }
        while let Some(index) = rest.pop() {
            if !std::mem::replace(&mut alive[index], true) {
                rest.extend(&self.entries[index].owns);
            }
        }
        let locked = self.locked.iter_mut();
        locked
            .filter(|(index, _)| !alive[*index])
            .filter_map(|(_, held)| held.take_content())
            .collect()
    }

    /// All entries, each after those that own it, but for what pooled states own.
    fn top_down(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.entries.len());
        let mut visited = vec![false; self.entries.len()];
        for root in 0..self.entries.len() {
            // What is owned comes on the stack a second time when all below it is in order.
            let mut stack = vec![(root, false)];
            while let Some((index, done)) = stack.pop() {
                if done {
                    order.push(index);
                } else if !std::mem::replace(&mut visited[index], true) {
                    stack.push((index, true));
                    if !matches!(self.entries[index].node, Node::Cell(_)) {
                        stack.extend(self.entries[index].owns.iter().map(|own| (*own, false)));
                    }
                }
            }
        }
        order.reverse();
        order
    }
}

fn each_owned(links: &Links<Anchor>, owned: &mut Vec<Node>) {
    match links {
        Links::None => {}
        Links::One((_, only)) => owned.extend(target(only)),
        Links::Many(links, _) => owned.push(Node::Links(Arc::clone(links))),
    }
}

/// What a link owns, if it may lead to a pooled state.
fn target(target: &Target<Anchor>) -> Option<Node> {
    Some(match target {
        Target::Blob(blob) => Node::Blob(Arc::clone(blob)),
        Target::Trie(node) => Node::Trie(Arc::clone(node)),
        Target::Anchor(anchor) if !leads_to_pooled(anchor) => return None,
        Target::Anchor(Anchor::Pooled(pooled)) => Node::Cell(Arc::clone(pooled.cell())),
        Target::Anchor(Anchor::State(state)) => Node::State(Arc::clone(state.linked())),
        Target::Anchor(Anchor::Share(share)) => Node::Shared(Arc::clone(share.shared())),
        Target::Anchor(Anchor::Parked(parked)) => Node::Parked(Arc::clone(parked.kept())),
        Target::Anchor(Anchor::Buffer(_) | Anchor::Foreign(_)) => return None,
    })
}
