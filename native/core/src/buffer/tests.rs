//! Invariants that are checked here:
//!
//! * any sequence of appends and takes gives the frames and the rest that a plain byte vector
//!   gives, whatever the pieces;
//! * every byte is searched at most once;
//! * an append over the limit changes nothing;
//! * an empty buffer holds no block, a short rest holds a small one, and all bytes are back when
//!   the buffers are gone.

use super::{
    BlockPool, Budget, Found, Frame, MESSAGE_LIMIT, MessageBuffer, MessageTooLarge, NotTaken,
};
use proptest::prelude::*;

fn open() -> BlockPool {
    let blocks = BlockPool::new();
    blocks.open();
    blocks
}

impl MessageBuffer<'_> {
    fn next(&mut self) -> Option<Vec<u8>> {
        match self.find(usize::MAX) {
            Found::Frame(len) => {
                let frame = self
                    .take(|frame| frame.as_ref().to_vec())
                    .expect("a found frame");

                assert_eq!(frame.len(), len);
                Some(frame)
            }
            Found::More => None,
            Found::Unfinished => unreachable!("no budget"),
        }
    }
}

#[test]
fn buffers_are_counted_also_while_they_hold_nothing() {
    let pool = BlockPool::new();
    let mut buffers: Vec<_> = (0..3).map(|_| MessageBuffer::new(&pool)).collect();
    assert_eq!(pool.buffers(), 3);
    assert_eq!(buffers[0].append(b"rest"), Ok(4));
    drop(buffers);
    assert_eq!(pool.buffers(), 0);
}

#[test]
fn frames_come_out_without_their_line_ends() {
    let blocks = open();
    let mut buffer = MessageBuffer::new(&blocks);
    assert_eq!(buffer.append(b"one\ntwo\r\n\r\n\nthr"), Ok(15));
    assert_eq!(buffer.next().as_deref(), Some(&b"one"[..]));
    assert_eq!(buffer.next().as_deref(), Some(&b"two"[..]));
    assert_eq!(buffer.next().as_deref(), Some(&b""[..]));
    assert_eq!(buffer.next().as_deref(), Some(&b""[..]));
    assert_eq!(buffer.next(), None);
    assert_eq!(buffer.held(), b"thr");
    assert_eq!(buffer.append(b"ee\r"), Ok(6));
    assert_eq!(buffer.next(), None);
    assert_eq!(buffer.append(b"\nx\ry\n"), Ok(11));
    assert_eq!(buffer.next().as_deref(), Some(&b"three"[..]));
    // A CR in the middle is content, and only one is removed at the end.
    assert_eq!(buffer.next().as_deref(), Some(&b"x\ry"[..]));
    assert_eq!(buffer.append(b"z\r\r\n"), Ok(4));
    assert_eq!(buffer.next().as_deref(), Some(&b"z\r"[..]));
    assert_eq!(buffer.next(), None);
    assert_eq!(buffer.held(), b"");
}

#[test]
fn an_idle_buffer_holds_no_block() {
    let blocks = open();
    let mut buffers: Vec<_> = (0..100).map(|_| MessageBuffer::new(&blocks)).collect();
    assert_eq!(blocks.stats(), Default::default());
    for size in [10, 2_000, 10_000, 60_000, 200_000] {
        for buffer in &mut buffers {
            let mut message = vec![b'm'; size];
            message.push(b'\n');
            buffer.append(&message).expect("within the limit");
        }
        assert!(blocks.stats().live_bytes as usize >= 100 * size);
        for buffer in &mut buffers {
            assert_eq!(buffer.next().map(|frame| frame.len()), Some(size));
        }
        let stats = blocks.stats();
        assert_eq!((stats.in_use, stats.live_bytes), (0, 0));
    }
}

#[test]
fn dropped_buffers_give_their_blocks_back() {
    let blocks = open();
    for size in [1, 5_000, 70_000] {
        let mut buffer = MessageBuffer::new(&blocks);
        buffer.append(&vec![b'.'; size]).expect("within the limit");
        drop(buffer);
    }
    let stats = blocks.stats();
    assert_eq!((stats.in_use, stats.live_bytes, stats.idle), (0, 0, 3));
    while blocks.trim_step() > 0 || blocks.stats().idle > 0 {}
    assert_eq!(blocks.stats().idle_bytes, 0);
}

#[test]
fn a_short_rest_does_not_keep_a_large_block() {
    let blocks = open();
    let mut buffer = MessageBuffer::new(&blocks);
    let mut bytes = vec![b'a'; 1_000_000];
    bytes.extend_from_slice(b"\nrest");
    buffer.append(&bytes).expect("within the limit");
    assert_eq!(buffer.next().map(|frame| frame.len()), Some(1_000_000));
    assert_eq!(buffer.next(), None);
    assert_eq!(buffer.held(), b"rest");
    assert!(blocks.stats().live_bytes < 2_000);
    buffer.append(b" of it\n").expect("within the limit");
    assert_eq!(buffer.next().as_deref(), Some(&b"rest of it"[..]));
}

#[test]
fn the_limit_is_checked_before_anything_changes() {
    let blocks = open();
    let mut buffer = MessageBuffer::new(&blocks);
    assert_eq!(buffer.reserve(MESSAGE_LIMIT + 1), Err(MessageTooLarge));
    assert_eq!(buffer.reserve(usize::MAX), Err(MessageTooLarge));
    assert_eq!(blocks.stats(), Default::default());
    assert_eq!(buffer.append(b"1234"), Ok(4));
    assert_eq!(buffer.reserve(MESSAGE_LIMIT - 3), Err(MessageTooLarge));
    assert_eq!(buffer.reserve(usize::MAX), Err(MessageTooLarge));
    assert_eq!(buffer.held(), b"1234");
    assert_eq!(
        buffer.append(&vec![b'x'; MESSAGE_LIMIT - 4]),
        Ok(MESSAGE_LIMIT)
    );
    assert_eq!(buffer.append(b"y"), Err(MessageTooLarge));
    assert_eq!(buffer.held().len(), MESSAGE_LIMIT);
    assert!(blocks.stats().live_bytes as usize <= MESSAGE_LIMIT);
}

#[test]
fn a_byte_is_searched_once_over_many_appends() {
    let blocks = open();
    let mut buffer = MessageBuffer::new(&blocks);
    let mut searched = 0;
    for round in 0..5_000 {
        buffer.append(b"0123456789").expect("within the limit");
        // The budget is just what came new: a second look at any byte would not get there.
        assert_eq!(buffer.find(10), Found::More);
        assert_eq!(buffer.searched - searched, 10, "round {round}");
        searched = buffer.searched;
    }
    buffer.append(b"\n").expect("within the limit");
    assert_eq!(buffer.find(1), Found::Frame(50_000));
    // Found, not taken: no search at all is needed to find it again.
    assert_eq!(buffer.find(0), Found::Frame(50_000));
    buffer.append(&[b'z'; 50_000]).expect("within the limit");
    assert_eq!(buffer.find(0), Found::Frame(50_000));
    assert_eq!(buffer.take(<[u8]>::len), Some(50_000));
    assert_eq!(buffer.take(<[u8]>::len), None);
}

#[test]
fn a_search_stops_at_its_budget_and_goes_on_from_there() {
    let blocks = open();
    let mut buffer = MessageBuffer::new(&blocks);
    buffer.append(b"0123456789\n").expect("within the limit");
    assert_eq!(buffer.find(6), Found::Unfinished);
    assert_eq!(buffer.take(<[u8]>::len), None);
    assert_eq!(buffer.find(4), Found::Unfinished);
    assert_eq!(buffer.find(1), Found::Frame(10));
}

#[test]
fn a_closed_pool_keeps_no_block() {
    let blocks = open();
    let mut early = MessageBuffer::new(&blocks);
    early.append(b"early").expect("within the limit");
    assert_eq!(MessageBuffer::new(&blocks).append(b"idle"), Ok(4));
    assert_eq!((blocks.stats().idle, blocks.stats().in_use), (1, 1));
    blocks.close();
    assert_eq!((blocks.stats().idle, blocks.stats().in_use), (0, 1));
    assert_eq!(early.held(), b"early");
    drop(early);
    assert_eq!(blocks.stats(), Default::default());
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<u8>),
    AppendMany(usize),
    Find(usize),
    Next,
}

fn op() -> impl Strategy<Value = Op> {
    let byte = prop_oneof![8 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r'), 2 => any::<u8>()];
    prop_oneof![
        4 => prop::collection::vec(byte, 0..40).prop_map(Op::Append),
        1 => (0usize..90_000).prop_map(Op::AppendMany),
        1 => (0usize..5_000).prop_map(Op::Find),
        4 => Just(Op::Next),
    ]
}

fn model_next(model: &mut Vec<u8>) -> Option<Vec<u8>> {
    let newline = model.iter().position(|&byte| byte == b'\n')?;
    let mut frame: Vec<u8> = model.drain(..=newline).collect();
    frame.pop();
    if frame.last() == Some(&b'\r') {
        frame.pop();
    }
    Some(frame)
}

proptest! {
    #[test]
    fn agrees_with_a_byte_vector(ops in prop::collection::vec(op(), 0..80)) {
        let blocks = open();
        let mut buffer = MessageBuffer::new(&blocks);
        let mut model = Vec::new();
        for op in ops {
            match op {
                Op::Append(bytes) => {
                    model.extend_from_slice(&bytes);
                    prop_assert_eq!(buffer.append(&bytes), Ok(model.len()));
                }
                Op::AppendMany(count) => {
                    let bytes = vec![b'.'; count];
                    model.extend_from_slice(&bytes);
                    prop_assert!(buffer.append_cost(count) >= count);
                    prop_assert_eq!(buffer.append(&bytes), Ok(model.len()));
                }
                Op::Find(budget) => {
                    buffer.find(budget);
                }
                Op::Next => prop_assert_eq!(buffer.next(), model_next(&mut model)),
            }
            prop_assert_eq!(buffer.held(), &model[..]);
            if model.is_empty() {
                prop_assert_eq!(blocks.stats().live_bytes, 0);
            }
        }
        drop(buffer);
        prop_assert_eq!(blocks.stats().live_bytes, 0);
    }
}

/// What `take_all` gives for pieces: frames, copied.
fn taken(buffer: &mut MessageBuffer<'_>, pieces: &[&[u8]]) -> Result<Vec<Vec<u8>>, NotTaken> {
    let all = Budget {
        frames: usize::MAX,
        bytes: usize::MAX,
    };
    let mut frames = Vec::new();
    buffer.take_all(pieces, all, |frame| {
        frames.push(match frame {
            Frame::Held(bytes) => bytes.to_vec(),
            Frame::Given(piece, start, len) => pieces[piece][start..start + len].to_vec(),
        });
    })?;
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_taken_at_once_are_those_taken_one_by_one(
        calls in prop::collection::vec(
            prop::collection::vec("[ab\r\n]{0,12}|[a-z]{200,3000}\r?\n?", 0..4), 1..20
        ),
    ) {
        let blocks = open();
        let mut at_once = MessageBuffer::new(&blocks);
        let mut one_by_one = MessageBuffer::new(&blocks);
        for call in &calls {
            let pieces: Vec<_> = call.iter().map(String::as_bytes).collect();
            let frames = taken(&mut at_once, &pieces).unwrap();
            for piece in pieces {
                one_by_one.append(piece).unwrap();
            }
            let expected: Vec<_> = std::iter::from_fn(|| one_by_one.next()).collect();
            prop_assert_eq!(frames, expected);
            prop_assert_eq!(at_once.held(), one_by_one.held());
        }
    }
}

#[test]
fn a_message_over_the_limit_takes_nothing() {
    let blocks = open();
    let mut buffer = MessageBuffer::with_limit(&blocks, 10);
    assert_eq!(buffer.append(b"a\nbcd"), Ok(5));
    let refused: [&[&[u8]]; 4] = [
        &[b"12345678"],
        &[b"1234567\n"],
        &[b"\n1234567890\n"],
        &[b"\n", b"12345", b"678901"],
    ];
    for pieces in refused {
        assert_eq!(taken(&mut buffer, pieces), Err(NotTaken::TooLarge));
        assert_eq!(buffer.held(), b"a\nbcd");
    }
    let many = b"123456789\n".repeat(100);
    let frames = taken(&mut buffer, &[b"123456\n", &many]).unwrap();
    assert_eq!(frames.len(), 102);
    assert_eq!(frames[1], b"bcd123456");
    assert_eq!(buffer.append(b"12345678901"), Err(MessageTooLarge));
}

#[test]
fn work_over_the_budget_takes_nothing() {
    let blocks = open();
    let mut buffer = MessageBuffer::new(&blocks);
    let budget = Budget {
        frames: 2,
        bytes: 10,
    };
    assert_eq!(buffer.append(b"a\nb"), Ok(3));
    let many: [&[u8]; 3] = [b"\n\n\n", b"12345678901", b"1234567\n"];
    for piece in many {
        let taken = buffer.take_all(&[piece], budget, |_| unreachable!("over the budget"));
        assert_eq!(taken, Err(NotTaken::OverBudget));
        assert_eq!(buffer.held(), b"a\nb");
    }
}
