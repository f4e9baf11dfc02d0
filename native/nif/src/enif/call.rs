//! How the VM calls a function of this crate.

use crate::lane::{Lane, NoResult};
use rustler::sys::{ErlNifTerm, enif_make_badarg, enif_raise_exception};
use rustler::{Env, Term};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
                    $crate::enif::call::answer($env, $lane, || $result, again)
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
