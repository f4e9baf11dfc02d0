//! The two lanes of a call: on a normal scheduler while the work is small, on a dirty one else.

use parking_lot::{Mutex, MutexGuard};
use rustler::sys::{ErlNifTerm, enif_make_badarg, enif_raise_exception};
use rustler::{Env, Term};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes that a call on a normal scheduler copies, packs or searches at most.
pub const FAST_BYTES: usize = 64 * 1024;

/// Bytes that a call on a normal scheduler does nothing else with but copy or search them: some 30
/// microseconds of work.
pub const FAST_COPY: usize = 256 * 1024;

/// Terms that a call on a normal scheduler visits at most: some 50 microseconds of work.
pub const FAST_TERMS: usize = 2_000;

/// Entries that a call on a normal scheduler puts into a map that has others: each may have to
/// write a page of its own.
pub const FAST_ENTRIES: usize = 128;

/// Which kind of scheduler a call runs on. On the fast lane it does a bounded piece of work or
/// none: where there is more to do, the VM makes the call again on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A normal scheduler: bounded work, and no waiting for a lock.
    Fast,
    /// A dirty scheduler.
    Dirty,
}

impl Lane {
    /// Refuses on the fast lane to look at a binary of this size, if it is large: the VM copies one
    /// that does not begin at a byte before it shows it, and the interface cannot be asked for its
    /// size.
    pub fn admit(self, bytes: Term<'_>) -> Result<(), Busy> {
        match (self, bytes.decode::<usize>()) {
            (Lane::Dirty, _) | (Lane::Fast, Ok(..=FAST_COPY)) => Ok(()),
            _ => Err(Busy),
        }
    }

    /// Locks a handle. [`Busy`] where the fast lane would have to wait, because the handle's lock
    /// may be held through a large job on the dirty one.
    pub fn lock<T>(self, mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>, Busy> {
        match self {
            Lane::Fast => mutex.try_lock().ok_or(Busy),
            Lane::Dirty => Ok(mutex.lock()),
        }
    }
}

/// The work that one call may do.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

/// There is more to do than a normal scheduler should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

impl Budget {
    /// Bytes copied for one unit.
    const BYTES: usize = FAST_BYTES / FAST_TERMS;

    /// What a call in this lane may do.
    pub fn new(lane: Lane) -> Self {
        Budget {
            left: match lane {
                Lane::Fast => FAST_TERMS,
                Lane::Dirty => usize::MAX,
            },
        }
    }

    /// As [`new`](Self::new), for a call that may do so many times as much on a normal scheduler.
    pub fn times(lane: Lane, times: usize) -> Self {
        let Budget { left } = Self::new(lane);
        Budget {
            left: left.saturating_mul(times),
        }
    }

    /// Whether this is the budget of a normal scheduler.
    pub fn is_bounded(&self) -> bool {
        self.left != usize::MAX
    }

    /// Takes a unit for one term, and those for copying this number of bytes.
    #[inline]
    pub fn spend(&mut self, bytes: usize) -> Result<(), Busy> {
        let units = 1 + bytes / Self::BYTES;
        if self.is_bounded() {
            self.left = self.left.checked_sub(units).ok_or(Busy)?;
        }
        Ok(())
    }
}

/// Why the body of a NIF has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoResult {
    /// There is more to do than a normal scheduler should.
    Busy,
    /// An argument is not of the right type.
    BadArg,
}

impl From<Busy> for NoResult {
    fn from(Busy: Busy) -> Self {
        NoResult::Busy
    }
}

impl From<rustler::Error> for NoResult {
    fn from(_: rustler::Error) -> Self {
        NoResult::BadArg
    }
}

/// Defines a NIF around a function of the environment, its arguments as terms, and the lane; on
/// `Busy` the VM calls it again on a dirty scheduler. With `short`, around a function that is
/// not told the lane, does little whatever it is given, and always returns a term. With `sized`, it
/// has a last argument more, the bytes of what it is given (`Lane::admit`). As rustler's
/// attribute, without the vector that it makes of the arguments.
#[macro_export]
macro_rules! nif {
    ($body:ident => short $name:ident($($argument:ident),+)) => {
        $crate::nif!(@define $name($($argument),+), env, _lane => {
            Ok::<_, $crate::lane::Busy>($body(env, $($argument),+))
        });
    };
    ($body:ident => sized $name:ident($($argument:ident),+)) => {
        $crate::nif!(@define $name($($argument),+, bytes), env, lane => {
            lane.admit(bytes).and_then(|()| $body(env, $($argument),+, lane))
        });
    };
    ($body:ident => $name:ident($($argument:ident),+)) => {
        $crate::nif!(@define $name($($argument),+), env, lane => {
            $body(env, $($argument),+, lane)
        });
    };
    (@define $name:ident($($argument:ident),+), $env:ident, $lane:ident => $result:expr) => {
        rustler::codegen_runtime::inventory::submit!(rustler::Nif {
            name: concat!(stringify!($name), "\0").as_ptr().cast(),
            arity: [$(stringify!($argument)),+].len() as u32,
            flags: rustler::SchedulerFlags::Normal as u32,
            raw_func: {
                unsafe extern "C" fn nif<const DIRTY: bool>(
                    env: *mut rustler::sys::ErlNifEnv,
                    arity: i32,
                    arguments: *const rustler::sys::ErlNifTerm,
                ) -> rustler::sys::ErlNifTerm {
                    let lifetime = ();
                    // SAFETY: the VM passes the environment of this call and as many terms as
                    // the arity says, which belong to it.
                    let ($env, [$($argument),+]) = unsafe {
                        let env = rustler::Env::new(&lifetime, env);
                        (env, arguments.cast::<[_; [$(stringify!($argument)),+].len()]>().read())
                    };
                    // SAFETY: as above.
                    $(let $argument = unsafe { rustler::Term::new($env, $argument) };)+
                    let $lane = if DIRTY {
                        $crate::lane::Lane::Dirty
                    } else {
                        $crate::lane::Lane::Fast
                    };
                    // SAFETY: the call is made again with what it was given, and `answer` returns
                    // the result to the VM at once.
                    let again = || unsafe {
                        rustler::sys::enif_schedule_nif(
                            env,
                            concat!(stringify!($name), "\0").as_ptr().cast(),
                            rustler::SchedulerFlags::DirtyCpu as i32,
                            nif::<true>,
                            arity,
                            arguments,
                        )
                    };
                    $crate::lane::answer($env, $lane, || $result, again)
                }
                nif::<false>
            },
        });
    };
}

/// What a NIF returns to the VM: the result of its body, or that of `again` where it belongs on
/// the other lane. A panic becomes an error of the caller.
pub fn answer<'a, E: Into<NoResult>>(
    env: Env<'a>,
    lane: Lane,
    body: impl FnOnce() -> Result<Term<'a>, E>,
    again: impl FnOnce() -> ErlNifTerm,
) -> ErlNifTerm {
    let result = catch_unwind(AssertUnwindSafe(body));
    match result.map(|result| result.map_err(Into::into)) {
        Ok(Ok(term)) => term.as_c_arg(),
        Ok(Err(NoResult::Busy)) if lane == Lane::Fast => again(),
        // SAFETY: the environment is that of this call, which ends here.
        Ok(Err(NoResult::BadArg)) => unsafe { enif_make_badarg(env.as_c_arg()) },
        // There is no third lane: a body that is busy on the dirty one is as wrong as a panic.
        Ok(Err(NoResult::Busy)) | Err(_) => {
            let reason = rustler::types::atom::nif_panicked();
            // SAFETY: an atom belongs to every environment.
            unsafe { enif_raise_exception(env.as_c_arg(), reason.as_c_arg()) }
        }
    }
}
