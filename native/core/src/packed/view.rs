//! A value to be read, with its links: what leads from one value into another.

use super::format::{Scalar, tag, write_varint};
use super::links::{Anchor, LinkVec, Links, Packed, Target};
use super::reader::{Page, each_link, item};

/// Whether these bytes contain a varint, or bytes that look like one.
fn contains_varint(bytes: &[u8], value: u64) -> bool {
    let mut pattern = Scalar::default();
    let len = write_varint(value, &mut pattern, 0);
    memchr::memchr_iter(pattern[0], bytes)
        .any(|at| bytes.get(at..at + len) == Some(&pattern[..len]))
}

/// A value to be read: its bytes, and the links of what it is part of.
#[derive(Debug)]
pub struct View<'a, A> {
    /// Exactly the bytes of the value.
    pub bytes: &'a [u8],
    /// Where the links in these bytes lead, and maybe others.
    pub links: &'a Links<A>,
}

impl<A> Clone for View<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for View<'_, A> {}

impl<A> AsRef<[u8]> for View<'_, A> {
    fn as_ref(&self) -> &[u8] {
        self.bytes
    }
}

impl<'a, A: Anchor> View<'a, A> {
    /// A view of these bytes.
    pub fn new(bytes: &'a [u8], links: &'a Links<A>) -> Self {
        View { bytes, links }
    }

    /// The value itself if it is out of line, this view otherwise.
    pub fn resolve(self) -> Self {
        match self.bytes.first() {
            Some(&tag::BLOB) => match self.target() {
                Some(Target::Blob(blob)) => blob.view(),
                _ => self,
            },
            _ => self,
        }
    }

    /// The target of a value that is nothing but a link.
    pub fn target(self) -> Option<&'a Target<A>> {
        // Most values are none, and need not be read.
        if self.links.is_empty() {
            return None;
        }
        self.links.get(item(self.bytes, &mut 0).ok()?.link()?)
    }

    /// Memory bytes of what is out of line below this value.
    pub fn out_of_line_bytes(self) -> usize {
        if self.links.is_empty() {
            return 0;
        }
        let mut sum = 0;
        let _ = each_link(self.bytes, &mut |id| {
            if let Some(target) = self.links.get(id) {
                sum += target.heap_bytes();
            }
        });
        sum
    }

    /// The links that occur in these bytes, one an occurrence.
    pub(crate) fn own_links(self) -> LinkVec<A> {
        let mut own = LinkVec::new();
        if !self.links.is_empty() {
            let _ = each_link(self.bytes, &mut |id| {
                if let Some(target) = self.links.get(id) {
                    own.push((id, target.clone()));
                }
            });
        }
        own
    }

    /// Whether a link occurs in these bytes.
    pub(crate) fn has_links(self) -> bool {
        let mut found = false;
        match self.links {
            Links::None => {}
            // Mostly it is somewhere else, and a search for its id tells that sooner.
            Links::One((id, _)) if !contains_varint(self.bytes, *id) => {}
            _ => {
                let _ = each_link(self.bytes, &mut |_| found = true);
            }
        }
        found
    }

    /// An independent copy of this value. Out-of-line parts are shared, not copied.
    pub fn to_packed(self) -> Packed<A> {
        Packed::new(self.bytes.into(), Links::from_unsorted(self.own_links()))
    }

    /// The content where this value is nothing but a share, the value itself otherwise.
    pub fn content(self) -> Self {
        let mut here = self;
        while here.bytes.first() == Some(&tag::SHARE)
            && let Some(Target::Anchor(anchor)) = here.target()
            && let Some(content) = anchor.shared_content()
        {
            here = content.view();
        }
        here
    }

    /// The value under a path of packed keys, through maps inline and out of line, and through the
    /// content of shares.
    pub fn find<K: AsRef<[u8]>>(self, path: &[K]) -> Option<View<'a, A>> {
        let mut here = self;
        for key in path {
            here = here.content();
            here = match Page::of(here.bytes) {
                Some(page) => View::new(page.find(key.as_ref())?, here.links),
                None => match here.target()? {
                    Target::Trie(node) => node.get(key.as_ref())?,
                    _ => return None,
                },
            };
        }
        Some(here.resolve())
    }
}

impl<A: Anchor> Packed<A> {
    /// The value, to be read.
    pub fn view(&self) -> View<'_, A> {
        View::new(self.bytes(), self.links())
    }
}
