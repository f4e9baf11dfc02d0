//! Pooled states that keep themselves alive.
//!
//! A pooled state is the only value that can change after others refer to it, so every cycle of
//! owners leads through one. Counting owners does not free a cycle. So a value that leads to a
//! pooled state, loses an owner and may have other owners is a suspect. The reaper tries many
//! suspects at once: for everything that they reach, it counts the owners found on the way (trial
//! deletion, after Bacon and Rajan, "Concurrent Cycle Collection in Reference Counted Systems",
//! 2001). What has no other owners than these, and is not reached from anything that has, is
//! garbage; its pooled states drop what they hold, and the rest is then freed by counting.
//!
//! A trial is bounded, so that the cost of dropping an owner does not depend on how much it leads
//! to: what is beyond the bound counts as alive. A sweep, at each trimming of the pool, tries all
//! pooled states, and then, in one trial without a bound, those that the bound left undecided.
//!
//! While owners are counted, the pooled states on the way are locked, so that no thread can get
//! from one of them to another. What is between them never changes, and a thread that has a part of
//! it can reach only what that part reaches. So owners are counted from the top down, and an owner
//! that moves down in the meantime is found further down. A pooled state that is in use, and what
//! is beyond the bound, is alive; what it owns has an owner that is not found, and so is alive as
//! well.

use crate::connection::ConnectionState;
use crate::park::Kept;
use crate::pool::{Cell, Held};
use crate::reaper;
use crate::share::Shared;
use crate::state::Linked;
use crate::terms::Anchor;
use erlmcp_memory_core::map::Node as Trie;
use erlmcp_memory_core::packed::{Link, Links, Packed, Target};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Whether an anchor keeps a pooled state alive.
pub fn leads_to_pooled(anchor: &Anchor) -> bool {
    match anchor {
        Anchor::Pooled(_) => true,
        Anchor::Share(share) => share.shared().host.is_cyclic(),
        Anchor::State(state) => state.linked().is_some_and(|linked| linked.is_cyclic()),
        Anchor::Parked(parked) => parked.kept().is_cyclic(),
        Anchor::Buffer(_) | Anchor::Foreign(_) => false,
    }
}

/// Whether one of the anchors behind these links does.
pub fn lead_to_pooled(links: &Links<Anchor>) -> bool {
    let mut lead = false;
    links.each_anchor(&mut |_, anchor| lead |= leads_to_pooled(anchor));
    lead
}

/// Drops an owner, and tries what it leaves.
pub fn suspect(suspect: Node) {
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

/// Set from the beginning of a sweep to its end: there is one at a time.
static SWEEPING: AtomicBool = AtomicBool::new(false);

/// Tries all of them: if many values share a part, one of its owners may go without being
/// suspected.
pub fn sweep() {
    if !SWEEPING.swap(true, Ordering::Relaxed) {
        reaper::sweep();
    }
}

/// Suspects of one trial, and about as many that only the sweep has looked at.
const ROOTS: usize = 512;

/// About how many owners a trial looks at, and how many more for one suspect.
const WORK: usize = 32 << 10;
const WORK_OF_ONE: usize = 8 << 10;

/// The same for a suspect with no other owner: it is not a cycle itself, and may be the head of a
/// long chain.
const WORK_OF_LAST: usize = 128;

/// After a trial without a bound, the next one waits for this many times its duration. A duration
/// above `LONG` counts as `LONG`.
const REST: u32 = 10;
const LONG: Duration = Duration::from_secs(2);

/// What waits for a trial.
#[derive(Default)]
pub struct Trials {
    suspects: Vec<Node>,
    /// Pooled states that the sweep has not seen yet.
    unseen: Vec<Weak<Cell>>,
    /// Those that it leaves to a trial without a bound.
    large: Vec<Weak<Cell>>,
    /// When the next such trial may begin.
    rested: Option<Instant>,
}

impl Trials {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.suspects.is_empty() && self.unseen.is_empty() && self.large.is_empty()
    }

    /// Whether there are enough suspects for a trial.
    pub fn is_due(&self) -> bool {
        self.suspects.len() >= ROOTS
    }

    /// Adds a suspect.
    pub fn push(&mut self, suspect: Node) {
        self.suspects.push(suspect);
    }

    /// Begins a sweep.
    pub fn sweep(&mut self) {
        self.unseen = std::mem::take(&mut *CELLS.lock());
        self.end_sweep_if_over();
    }

    /// Holds one trial.
    pub fn step(&mut self) {
        if self.unseen.is_empty() && !self.large.is_empty() {
            self.large_trial();
        } else {
            self.trial();
        }
        self.end_sweep_if_over();
    }

    fn trial(&mut self) {
        let mut graph = Graph::default();
        let mut left = 2 * ROOTS;
        while left > 0 && graph.work < WORK {
            left -= 1;
            if let Some(suspect) = self.suspects.pop() {
                graph.root(suspect);
            } else if let Some(cell) = self.unseen.pop() {
                let Some(cell) = cell.upgrade() else { continue };
                note(&cell);
                if cell.is_left() {
                    self.large.push(Arc::downgrade(&cell));
                } else if cell.may_have_links() {
                    graph.root(Node::Cell(cell));
                }
            } else {
                break;
            }
        }
        let (garbage, large) = graph.judge();
        drop(garbage);
        // Those that no sweep has are left to the next one.
        if SWEEPING.load(Ordering::Relaxed) {
            self.large.extend(large);
        }
    }

    /// A trial of everything that the bound left undecided. It locks its pooled states for its
    /// whole duration and does not yield, so a long one is run rarely.
    fn large_trial(&mut self) {
        let began = Instant::now();
        let cells = std::mem::take(&mut self.large);
        if self.rested.is_some_and(|rested| began < rested) {
            return;
        }
        let mut graph = Graph::default();
        for cell in cells.iter().filter_map(Weak::upgrade) {
            cell.leave(false);
            graph.entry(Node::Cell(cell));
        }
        // The waiting suspects are owners.
        for suspect in self.suspects.drain(..) {
            graph.entry(suspect);
        }
        graph.walk(usize::MAX);
        drop(graph.judge());
        self.rested = Some(Instant::now() + began.elapsed().min(LONG) * REST);
    }

    fn end_sweep_if_over(&self) {
        if self.unseen.is_empty() && self.large.is_empty() {
            SWEEPING.store(false, Ordering::Relaxed);
        }
    }
}

/// A value with owners.
pub enum Node {
    Cell(Arc<Cell>),
    State(Arc<Linked>),
    Shared(Arc<Shared>),
    Parked(Arc<Kept>),
    Blob(Arc<Packed<Anchor>>),
    Trie(Arc<Trie<Anchor>>),
    Links(Arc<[Link<Anchor>]>),
}

struct Entry {
    /// Keeps it alive during the trial, and is one more owner.
    node: Node,
    /// Owners that were found.
    found: usize,
    /// What it owns.
    owns: Vec<usize>,
    /// A pooled state that is in use.
    in_use: bool,
    /// It is beyond the bound.
    left: bool,
}

/// What is reached from suspects. Locks are released before anything is dropped.
#[derive(Default)]
struct Graph {
    locked: Vec<(usize, Held)>,
    entries: Vec<Entry>,
    /// Entries by the addresses of their nodes.
    known: HashMap<usize, usize>,
    /// Suspects that are pooled states.
    roots: Vec<usize>,
    /// The first entry whose owned nodes are not known yet.
    next: usize,
    /// Owners that were looked at.
    work: usize,
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

    /// All owners except the graph.
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

    /// How many nodes it may own, if these may be many.
    fn width(&self) -> usize {
        match self {
            Node::Links(links) => links.len(),
            _ => 0,
        }
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
                in_use: false,
                left: false,
            });
        }
        index
    }

    /// Adds a suspect, and what is reached from it within the bound.
    fn root(&mut self, node: Node) {
        let work = match node.owners() {
            0 => WORK_OF_LAST,
            _ => WORK_OF_ONE,
        };
        let is_cell = matches!(node, Node::Cell(_));
        let index = self.entry(node);
        if is_cell {
            self.roots.push(index);
        }
        self.work += 1;
        self.walk(self.work + work);
    }

    /// Finds what is reached, until this many owners were looked at.
    fn walk(&mut self, end: usize) {
        while self.next < self.entries.len() {
            let index = self.next;
            self.next += 1;
            let entry = &mut self.entries[index];
            let width = entry.node.width();
            if self.work.saturating_add(width) >= end {
                entry.left = true;
                continue;
            }
            let mut owned = Vec::new();
            match &entry.node {
                Node::Cell(cell) => match cell.try_lock() {
                    Some(held) => {
                        if let Some(links) = held.links() {
                            each_owned(links, &mut owned);
                        }
                        // The lock is an owner too.
                        entry.found += 1;
                        self.locked.push((index, held));
                    }
                    None => entry.in_use = true,
                },
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
            self.work += 1 + width.max(owned.len());
            for node in owned {
                let own = self.entry(node);
                self.entries[own].found += 1;
                self.entries[index].owns.push(own);
            }
        }
    }

    /// The contents of the pooled states that nothing outside of the graph owns, which are empty
    /// afterwards; and the suspects among the pooled states that the bound leaves undecided.
    fn judge(mut self) -> (Vec<ConnectionState>, Vec<Weak<Cell>>) {
        let mut alive = vec![false; self.entries.len()];
        let mut rest = Vec::new();
        for index in self.top_down() {
            let entry = &self.entries[index];
            if entry.left || entry.in_use || entry.node.owners() > entry.found {
                rest.push(index);
            }
        }
        while let Some(index) = rest.pop() {
            if !std::mem::replace(&mut alive[index], true) {
                rest.extend(&self.entries[index].owns);
            }
        }
        let open = self.above_the_left();
        let large = self
            .roots
            .iter()
            .filter(|root| open[**root] && alive[**root]);
        let large = large
            .filter_map(|root| match &self.entries[*root].node {
                Node::Cell(cell) => {
                    cell.leave(true);
                    Some(Arc::downgrade(cell))
                }
                _ => None,
            })
            .collect();
        let locked = self.locked.iter_mut();
        let garbage = locked
            .filter(|(index, _)| !alive[*index])
            .filter_map(|(_, held)| held.take_content())
            .collect();
        (garbage, large)
    }

    /// What leads to something beyond the bound.
    fn above_the_left(&self) -> Vec<bool> {
        let mut open = vec![false; self.entries.len()];
        let left = self.entries.iter().enumerate();
        let mut rest: Vec<usize> = left.filter(|(_, e)| e.left).map(|(at, _)| at).collect();
        if rest.is_empty() {
            return open;
        }
        let mut owners = vec![Vec::new(); self.entries.len()];
        for (owner, entry) in self.entries.iter().enumerate() {
            entry.owns.iter().for_each(|own| owners[*own].push(owner));
        }
        while let Some(index) = rest.pop() {
            if !std::mem::replace(&mut open[index], true) {
                rest.extend(&owners[index]);
            }
        }
        open
    }

    /// All entries, each after its owners, except those owned by pooled states.
    fn top_down(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.entries.len());
        let mut visited = vec![false; self.entries.len()];
        for root in 0..self.entries.len() {
            // An entry is visited a second time once everything below it is in order.
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
        Target::Anchor(Anchor::State(state)) => Node::State(Arc::clone(state.linked()?)),
        Target::Anchor(Anchor::Share(share)) => Node::Shared(Arc::clone(share.shared())),
        Target::Anchor(Anchor::Parked(parked)) => Node::Parked(Arc::clone(parked.kept())),
        Target::Anchor(Anchor::Buffer(_) | Anchor::Foreign(_)) => return None,
    })
}
