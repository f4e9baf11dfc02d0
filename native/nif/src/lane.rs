//! The two lanes of a call: on a normal scheduler while the work is small, on a dirty one else.

use parking_lot::{Mutex, MutexGuard};
use rustler::sys::{ErlNifTerm, enif_raise_exception};
use rustler::{Env, Term};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes that a call on a normal scheduler copies, packs or searches at the most.
pub const FAST_BYTES: usize = 64 * 1024;

/// Bytes that a call on a normal scheduler does nothing else with but copy or search them: some 30
/// microseconds of work.
pub const FAST_COPY: usize = 256 * 1024;

/// Terms that a call on a normal scheduler visits at the most: some 50 microseconds of work.
pub const FAST_TERMS: usize = 2_000;

/// Which kind of scheduler a call runs on. On the fast lane it does a bounded piece of work or
/// none: when it sees that there is more to do, it answers `busy` and is called again on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// A normal scheduler: bounded work, and no waiting for a lock.
    Fast,
    /// A dirty scheduler.
    Dirty,
}

impl Lane {
    /// Locks a handle; `None` where that means to wait and the lane does not allow it, because
    /// the handle's lock may be held through a large job on the dirty lane.
    pub fn lock<T>(self, mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
        match self {
            Lane::Fast => mutex.try_lock(),
            Lane::Dirty => Some(mutex.lock()),
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

    /// Whether this is the budget of a normal scheduler.
    pub fn is_bounded(&self) -> bool {
        self.left <= FAST_TERMS
    }

    /// Takes a unit for one term and what copying so many bytes takes.
    #[inline]
    pub fn spend(&mut self, bytes: usize) -> Result<(), Busy> {
        let units = 1 + bytes / Self::BYTES;
        if self.is_bounded() {
            self.left = self.left.checked_sub(units).ok_or(Busy)?;
        }
        Ok(())
    }
}

/// Defines a NIF around a function of the environment, its arguments as terms, and any constants
/// after them. As rustler's attribute, without the vector that it makes of the arguments.
#[macro_export]
macro_rules! nif {
    ($inner:ident => $name:ident, $schedule:ident ($($argument:ident),+) $(, $constant:expr)*) => {
        rustler::codegen_runtime::inventory::submit!(rustler::Nif {
            name: concat!(stringify!($name), "\0").as_ptr().cast(),
            arity: [$(stringify!($argument)),+].len() as u32,
            flags: rustler::SchedulerFlags::$schedule as u32,
            raw_func: {
                unsafe extern "C" fn nif(
                    env: *mut rustler::sys::ErlNifEnv,
                    _arity: i32,
                    arguments: *const rustler::sys::ErlNifTerm,
                ) -> rustler::sys::ErlNifTerm {
                    let lifetime = ();
                    // SAFETY: the VM passes the environment of this call and as many terms as
                    // the arity says, which belong to it.
                    let (env, [$($argument),+]) = unsafe {
                        let env = rustler::Env::new(&lifetime, env);
                        (env, arguments.cast::<[_; [$(stringify!($argument)),+].len()]>().read())
                    };
                    // SAFETY: as above.
                    $(let $argument = unsafe { rustler::Term::new(env, $argument) };)+
                    $crate::lane::answer(env, || $inner(env, $($argument),+ $(, $constant)*))
                }
                nif
            },
        });
    };
}

/// The answer of a NIF. A panic in it becomes an error of its caller.
pub fn answer<'a>(env: Env<'a>, body: impl FnOnce() -> Term<'a>) -> ErlNifTerm {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(term) => term.as_c_arg(),
        Err(_) => {
            let reason = rustler::types::atom::nif_panicked();
            // SAFETY: an atom belongs to every environment.
            unsafe { enif_raise_exception(env.as_c_arg(), reason.as_c_arg()) }
        }
    }
}

/// Defines a NIF and its twin on a dirty scheduler, both around a function that is told its lane.
#[macro_export]
macro_rules! lanes {
    ($inner:ident => $fast:ident, $dirty:ident ($($argument:ident),+)) => {
        $crate::nif!($inner => $fast, Normal($($argument),+), $crate::lane::Lane::Fast);
        $crate::nif!($inner => $dirty, DirtyCpu($($argument),+), $crate::lane::Lane::Dirty);
    };
}
