//! The two lanes of a call: on a normal scheduler if the work is small, else on a dirty one.

use parking_lot::{Mutex, MutexGuard};
use rustler::sys::{ErlNifTerm, enif_make_badarg, enif_raise_exception};
use rustler::{Env, Term};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The most bytes that a call on a normal scheduler copies, packs or searches.
pub const FAST_BYTES: usize = 256 * 1024;

/// The most bytes in a call on a normal scheduler that only copies or searches them: some 30
/// microseconds of work.
pub const FAST_COPY: usize = 256 * 1024;

/// The most terms that a call on a normal scheduler visits: some 200 microseconds of work.
/// Waking a dirty scheduler takes 10 to 30, and the work is done anew there.
pub const FAST_TERMS: usize = 8_000;

/// The most entries that a call on a normal scheduler adds to a map with other entries: each may
/// have to write a separate page.
pub const FAST_ENTRIES: usize = 128;

/// Which kind of scheduler a call runs on. On the fast lane it does a bounded amount of work or
/// none: if there is more to do, the VM repeats the call on the other lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A normal scheduler: bounded work, and no waiting for a lock.
    Fast,
    /// A dirty scheduler.
    Dirty,
}

impl Lane {
    /// On the fast lane, refuses to look at a binary of this size if it is large: the VM copies a
    /// binary that does not begin at a byte boundary before it gives access to it, and the NIF
    /// interface cannot tell its size.
    pub fn admit(self, bytes: Term<'_>) -> Result<(), Busy> {
        match (self, bytes.decode::<usize>()) {
            (Lane::Dirty, _) | (Lane::Fast, Ok(..=FAST_COPY)) => Ok(()),
            _ => Err(Busy),
        }
    }

    /// Locks a handle. [`Busy`] if the fast lane would have to wait, because the lock may be held
    /// for a long call on the dirty lane.
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
    /// Bytes copied for one unit of the budget.
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

    /// As [`new`](Self::new), for a call that may do this many times as much on a normal scheduler.
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
/// `Busy` the VM calls it again on a dirty scheduler. With `short`, around a function that does not
/// get the lane, does little for any arguments, and always returns a term. With `sized`, it has one
/// more argument at the end, the size of its argument (`Lane::admit`). Like rustler's attribute,
/// without the vector that it makes of the arguments.
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
                    // SAFETY: the call is repeated with the same arguments, and `answer` returns
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

/// What a NIF returns to the VM: the result of its body, or that of `again` if it belongs on the
/// other lane. A panic becomes an error of the caller.
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
        // There is no third lane: a body that is busy on the dirty lane is a fault, like a panic.
        Ok(Err(NoResult::Busy)) | Err(_) => {
            let reason = rustler::types::atom::nif_panicked();
            // SAFETY: an atom belongs to every environment.
            unsafe { enif_raise_exception(env.as_c_arg(), reason.as_c_arg()) }
        }
    }
}
