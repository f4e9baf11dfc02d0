use super::*;
use crate::packed::Writer;

#[derive(Debug, Default)]
struct Unheld(AtomicUsize);

impl Host for Unheld {
    fn unheld(&self, holders: &AtomicUsize) {
        if holders.load(Ordering::Acquire) == 0 {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_counted(&self) -> bool {
        false
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

type TestStore = Store<Arc<str>, Unheld>;

fn text(s: &str) -> Packed<Arc<str>> {
    let mut writer = Writer::new();
    writer.binary(s.as_bytes());
    writer.finish()
}

#[test]
fn equal_content_is_kept_once() {
    let store = TestStore::default();
    let a = store.intern(text("tools"));
    let b = store.intern(text("tools"));
    let c = store.intern(text("prompts"));
    assert!(Arc::ptr_eq(&a, &b));
    assert!(!Arc::ptr_eq(&a, &c));
    assert_eq!(store.len(), 2);
}

#[test]
fn the_last_owner_frees_it() {
    let store = TestStore::default();
    let a = store.intern(text("tools"));
    let holder = a.holder();
    let another = holder.clone();
    drop(a);
    drop(holder);
    assert_eq!(store.len(), 1);
    assert_eq!(another.shared().host.0.load(Ordering::Relaxed), 0);
    let a = Arc::clone(another.shared());
    drop(another);
    assert_eq!(a.host.0.load(Ordering::Relaxed), 1);
    drop(a);
    assert!(store.is_empty());
}

#[test]
fn usage_is_of_what_is_there_and_comes_back_to_nothing() {
    let store = TestStore::default();
    assert_eq!(store.usage(), Usage::default());
    let a = store.intern(text("tools"));
    let one = store.usage();
    assert_eq!((one.count, one.bytes), (1, a.heap_bytes()));
    let many: Vec<_> = (0..2 * FEW).map(|_| a.holder()).collect();
    assert_eq!(store.usage().bytes, a.heap_bytes());
    assert!(a.heap_bytes() > one.bytes);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let more: Vec<_> = many.iter().map(Clone::clone).collect();
                drop(more);
            });
        }
    });
    assert_eq!(a.holders(), many.len());
    assert_eq!(store.usage().bytes, a.heap_bytes());
    drop(many);
    assert_eq!(a.holders(), 0);
    let content = Arc::clone(a.content());
    drop(a);
    // Its readers keep it.
    assert_eq!((store.len(), store.usage().count), (0, 1));
    drop(content);
    assert_eq!(store.usage(), Usage::default());
}

#[test]
fn the_largest_are_found_also_when_others_went_and_came_again() {
    let store = TestStore::default();
    let value = |len: usize| text(&"x".repeat(len));
    let all: Vec<_> = (1..200).map(|len| store.intern(value(100 * len))).collect();
    let lengths = |limit| {
        let found = store.largest(limit).into_iter();
        let len = |shared: Arc<Shared<_, _>>| shared.packed().bytes().len() / 100;
        found.map(len).collect::<Vec<_>>()
    };
    assert_eq!(lengths(3), [199, 198, 197]);
    drop(all);
    assert_eq!(lengths(3), [0; 0]);
    let again: Vec<_> = [5, 9, 7].map(|len| store.intern(value(100 * len))).into();
    assert_eq!(lengths(10), [9, 7, 5]);
    drop(again);
}

#[test]
fn what_threads_share_and_drop_at_once_stays_ranked() {
    let store = TestStore::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..5_000 {
                    let kept = store.intern(text(&format!("value {}", round % 3)));
                    assert!(store.largest(3).len() <= 3);
                    drop(kept);
                }
            });
        }
    });
    let last = store.intern(text("value 1"));
    assert!(Arc::ptr_eq(&store.largest(1)[0], &last));
    drop(last);
    assert_eq!(store.usage(), Usage::default());
    assert!(
        store
            .table
            .0
            .iter()
            .all(|part| part.lock().ranks.is_empty())
    );
}

#[test]
fn bytes_outlive_the_owners_for_their_readers() {
    let store = TestStore::default();
    let shared = store.intern(text("tools"));
    let content = Arc::clone(shared.content());
    drop(shared);
    assert!(store.is_empty());
    assert_eq!(content.packed().bytes(), text("tools").bytes());
}

#[test]
fn a_share_inside_is_part_of_what_is_compared() {
    let store = TestStore::default();
    let with = |id| {
        let mut writer = Writer::new();
        writer.share(id, Arc::from("inner"));
        writer.finish()
    };
    let a = store.intern(with(1));
    assert!(!Arc::ptr_eq(&a, &store.intern(with(2))));
    assert!(Arc::ptr_eq(&a, &store.intern(with(1))));
}

#[test]
fn threads_that_share_the_same_meet_at_one_content() {
    let store = TestStore::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..2_000 {
                    let value = format!("value {}", round % 7);
                    let content = store.intern(text(&value));
                    assert_eq!(content.packed().bytes(), text(&value).bytes());
                    let again = store.intern(text(&value));
                    assert!(Arc::ptr_eq(&content, &again));
                }
            });
        }
    });
    assert!(store.is_empty());
}

#[test]
fn owners_on_many_threads_are_counted_apart_and_all() {
    let store = TestStore::default();
    let shared = store.intern(text("tools"));
    let many: Vec<_> = (0..2 * FEW).map(|_| shared.holder()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mine: Vec<_> = many.iter().map(Clone::clone).collect();
                let homes: Vec<_> = mine.iter().map(|holder| Arc::as_ptr(&holder.0)).collect();
                assert_eq!(
                    homes.iter().collect::<std::collections::HashSet<_>>().len(),
                    1
                );
                for _ in 0..1_000 {
                    drop(mine.clone());
                }
            });
        }
    });
    assert_eq!(shared.host.0.load(Ordering::Relaxed), 0);
    assert_eq!(shared.held.load(Ordering::Relaxed), 1);
    drop(many);
    assert_eq!(shared.host.0.load(Ordering::Relaxed), 1);
    drop(shared);
    assert!(store.is_empty());
}
