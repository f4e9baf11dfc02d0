//! Resource objects: native values behind references.
//!
//! The same as rustler's `ResourceArc`, except that a module that is loaded again takes over the
//! types. Also, rustler looks up a type in a hash map on each use and aligns each object by hand;
//! here a type knows its class, and an object is as large as its value.

use crate::alloc::{SPECIMEN, SPECIMENS};
use erlmcp_memory_core::heap;
use erlmcp_memory_core::threads::{Tally, Usage};
use rustler::sys::{
    ErlNifEnv, ErlNifMonitor, ErlNifPid, ErlNifResourceDown, ErlNifResourceDtor,
    ErlNifResourceFlags, ErlNifResourceType, ErlNifResourceTypeInit, c_void, enif_alloc_resource,
    enif_get_resource, enif_init_resource_type, enif_keep_resource, enif_make_resource,
    enif_make_resource_binary, enif_monitor_process, enif_release_resource,
};
use rustler::{Decoder, Encoder, Env, Error, LocalPid, NifResult, Term};
use std::cell::Cell;
use std::ffi::CStr;
use std::fmt::{Debug, Formatter};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// A type whose values live in resource objects. It is registered whenever the module is loaded,
/// and the VM may use and drop its values on any thread.
///
/// # Safety
///
/// No two types may return the same class: the VM's objects of a class are read as values of its
/// type. [`resource!`](crate::resource!) makes one for each.
pub unsafe trait Resource: Send + Sync + Sized + 'static {
    /// The VM's name of the type.
    const NAME: &'static CStr;

    /// What is called when a process that an object monitors ends.
    const DOWN: Option<fn(&Self)>;

    /// Where the type keeps the VM's handle for it.
    fn class() -> &'static Class;
}

/// The VM's handle for a type; null before it is registered.
pub struct Class {
    current: AtomicPtr<ErlNifResourceType>,
    /// The VM's handle before the module was purged, which objects from then still have.
    former: AtomicPtr<Class>,
    /// The number of its objects. Their bytes follow from it.
    objects: Tally,
}

impl Class {
    /// Of a type that is not registered yet.
    pub const fn new() -> Self {
        Class {
            current: AtomicPtr::new(ptr::null_mut()),
            former: AtomicPtr::new(ptr::null_mut()),
            objects: Tally::new(),
        }
    }

    fn get(&self) -> *const ErlNifResourceType {
        // Written before any other thread can know the module.
        let class = self.registered();
        assert!(!class.is_null(), "a type that is not registered");
        class
    }

    fn registered(&self) -> *mut ErlNifResourceType {
        self.current.load(Ordering::Relaxed)
    }

    fn former(&self) -> Option<&'static Class> {
        // SAFETY: it is null or was leaked by `replace`.
        unsafe { self.former.load(Ordering::Acquire).as_ref() }
    }

    /// To be called while the module is loaded, which one process does at a time.
    fn replace(&self, class: *const ErlNifResourceType) {
        let current = self.registered();
        if !current.is_null() {
            let former = Class {
                current: AtomicPtr::new(current),
                former: AtomicPtr::new(self.former.load(Ordering::Relaxed)),
                objects: Tally::new(),
            };
            self.former
                .store(Box::leak(Box::new(former)), Ordering::Release);
        }
        self.current.store(class.cast_mut(), Ordering::Relaxed);
    }
}

/// Makes `impl Resource` for a type, optionally with what is called when a monitored process ends.
#[macro_export]
macro_rules! resource {
    ($type:ty, $name:literal) => {
        $crate::resource!(@impl $type, $name, None);
    };
    ($type:ty, $name:literal, $down:expr) => {
        $crate::resource!(@impl $type, $name, Some($down));
    };
    (@impl $type:ty, $name:literal, $down:expr) => {
        // SAFETY: the class is a static of this function alone.
        unsafe impl $crate::resource::Resource for $type {
            const NAME: &'static std::ffi::CStr = $name;
            const DOWN: Option<fn(&Self)> = $down;

            fn class() -> &'static $crate::resource::Class {
                static CLASS: $crate::resource::Class = $crate::resource::Class::new();
                &CLASS
            }
        }
    };
}

/// Registers a type with the VM. To be called while the module is loaded; `false` if the VM
/// refuses.
///
/// The type of an old version of the module is taken over, with its objects. After that version was
/// purged there is none to take over, and a new one is made; objects of the former type are found
/// under its handle.
pub fn register<T: Resource>(env: Env<'_>) -> bool {
    // The VM's objects are aligned for a word.
    const { assert!(align_of::<T>() <= align_of::<usize>()) };
    let down = match T::DOWN {
        Some(_) => down::<T> as *const ErlNifResourceDown,
        None => ptr::null(),
    };
    let init = ErlNifResourceTypeInit {
        dtor: destructor::<T> as *const ErlNifResourceDtor,
        stop: ptr::null(),
        down,
        members: 3,
        dyncall: ptr::null(),
    };
    let open = |how| {
        let mut tried = how;
        // SAFETY: this is the module's load callback, the name ends with a zero byte, and the VM
        // copies both.
        unsafe { enif_init_resource_type(env.as_c_arg(), T::NAME.as_ptr(), &init, how, &mut tried) }
    };
    let mut class = open(ErlNifResourceFlags::ERL_NIF_RT_TAKEOVER);
    if class.is_null() {
        class = open(ErlNifResourceFlags::ERL_NIF_RT_CREATE);
    }
    if !class.is_null() && !ptr::eq(class, T::class().registered()) {
        T::class().replace(class);
        // An object that is never freed: the VM keeps the type, so that no other type is mistaken
        // for it, and the library, whose threads and statics must stay. SAFETY: the class is
        // registered; no reference to the object is handed out.
        unsafe { enif_alloc_resource(class, 0) };
    }
    !class.is_null()
}

unsafe extern "C" fn down<T: Resource>(
    _env: *mut ErlNifEnv,
    object: *mut c_void,
    _process: *const ErlNifPid,
    _monitor: *const ErlNifMonitor,
) {
    // SAFETY: the VM calls this for an object that lives; `ResourceRef::new` put a value into it.
    let value = unsafe { object.cast::<T>().as_ref() };
    if let (Some(value), Some(down)) = (value, T::DOWN) {
        // A panic must not reach the VM; there is no caller to report it to.
        let _ = catch_unwind(AssertUnwindSafe(|| down(value)));
    }
}

unsafe extern "C" fn destructor<T: Resource>(_env: *mut ErlNifEnv, object: *mut c_void) {
    // SAFETY: the VM calls this once for an object, after its last use; `ResourceRef::new` put a
    // value into it. A panic must not reach the VM; there is no caller to report it to.
    let _ = catch_unwind(|| unsafe { object.cast::<T>().drop_in_place() });
    T::class().objects.add(-1, 0);
}

/// The objects of a type, and what the VM takes for them, their headers included.
pub fn objects<T: Resource>() -> Usage {
    let Usage { count, .. } = T::class().objects.sum();
    Usage {
        count,
        bytes: count * (size_of::<T>() + overhead()),
    }
}

/// The value that a term refers to, if it is a reference to one of this type.
pub fn get<'a, T: Resource>(term: Term<'a>) -> Option<&'a T> {
    // SAFETY: the object lives at least as long as the term, and holds a `T` from the beginning.
    pointer(term).map(|value: NonNull<T>| unsafe { value.as_ref() })
}

fn pointer<T: Resource>(term: Term<'_>) -> Option<NonNull<T>> {
    let mut class = Some(T::class());
    while let Some(registered) = class {
        let mut object = ptr::null();
        // SAFETY: the class is registered; the call writes `object` when it succeeds.
        let found = unsafe {
            let env = term.get_env().as_c_arg();
            enif_get_resource(env, term.as_c_arg(), registered.get(), &mut object)
        };
        if found != 0 {
            return NonNull::new(object.cast_mut().cast());
        }
        class = registered.former();
    }
    None
}

/// An owner of a resource object.
pub struct ResourceRef<T: Resource>(NonNull<T>);

// SAFETY: a resource object may be used on any thread, and its value is `Send` and `Sync`.
unsafe impl<T: Resource> Send for ResourceRef<T> {}
// SAFETY: as above.
unsafe impl<T: Resource> Sync for ResourceRef<T> {}

impl<T: Resource> ResourceRef<T> {
    /// A new object.
    pub fn new(value: T) -> Self {
        Self::with_room(value, size_of::<T>())
    }

    /// A new object of this many bytes; the value is at its beginning.
    fn with_room(value: T, bytes: usize) -> Self {
        assert!(bytes >= size_of::<T>());
        Self::with_tail(|_| value, bytes - size_of::<T>())
    }

    /// A new object around a value, with `bytes` bytes behind it, aligned for a word. `value` gets
    /// their address; they live as long as the value does.
    pub fn with_tail(value: impl FnOnce(NonNull<u8>) -> T, bytes: usize) -> Self {
        let start = size_of::<T>().next_multiple_of(size_of::<usize>());
        // SAFETY: the class is registered; the VM gives out memory of this size, aligned for a
        // word, or takes the node down. A panic in `value` leaves memory without a value, which the
        // VM does not know of yet.
        unsafe {
            let object = enif_alloc_resource(T::class().get(), start + bytes);
            let object = NonNull::new_unchecked(object.cast::<T>());
            object.write(value(object.cast::<u8>().add(start)));
            T::class().objects.add(1, 0);
            ResourceRef(object)
        }
    }

    /// The object that a term refers to, if it is one of this type.
    pub fn from_term(term: Term<'_>) -> Option<Self> {
        pointer(term).map(|object: NonNull<T>| {
            // SAFETY: the term keeps the object alive meanwhile.
            unsafe { enif_keep_resource(object.as_ptr().cast()) };
            ResourceRef(object)
        })
    }

    /// Has the object monitor a process; `false` if that has ended. For types with
    /// [`Resource::DOWN`].
    pub fn monitor(&self, env: Env<'_>, process: &LocalPid) -> bool {
        // SAFETY: `self` keeps the object alive meanwhile; the monitor itself is not needed.
        unsafe {
            let (env, object) = (env.as_c_arg(), self.address());
            enif_monitor_process(env, object, process.as_c_arg(), ptr::null_mut()) == 0
        }
    }

    /// A reference to the object.
    pub fn to_term<'a>(&self, env: Env<'a>) -> Term<'a> {
        // SAFETY: `self` keeps the object alive meanwhile.
        unsafe { Term::new(env, enif_make_resource(env.as_c_arg(), self.address())) }
    }

    /// A binary that keeps the object alive.
    ///
    /// # Safety
    ///
    /// The bytes must live, and stay as they are, as long as the object.
    pub unsafe fn binary<'a>(&self, env: Env<'a>, bytes: &[u8]) -> Term<'a> {
        // SAFETY: the caller promises what the VM asks for.
        unsafe {
            let start = bytes.as_ptr().cast();
            let env_arg = env.as_c_arg();
            let binary = enif_make_resource_binary(env_arg, self.address(), start, bytes.len());
            Term::new(env, binary)
        }
    }

    /// What distinguishes this object from all others while it lives.
    pub fn address(&self) -> *const c_void {
        self.0.as_ptr().cast_const().cast()
    }
}

impl<T: Resource> Deref for ResourceRef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `self` keeps the object alive.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Resource> Clone for ResourceRef<T> {
    fn clone(&self) -> Self {
        // SAFETY: `self` keeps the object alive meanwhile.
        unsafe { enif_keep_resource(self.address()) };
        ResourceRef(self.0)
    }
}

impl<T: Resource> Drop for ResourceRef<T> {
    fn drop(&mut self) {
        // SAFETY: `self` was an owner, and is not one from here on.
        unsafe { enif_release_resource(self.address()) };
    }
}

impl<T: Resource> Debug for ResourceRef<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ResourceRef").field(&self.0).finish()
    }
}

impl<T: Resource> Encoder for ResourceRef<T> {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        self.to_term(env)
    }
}

impl<'a, T: Resource> Decoder<'a> for ResourceRef<T> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        Self::from_term(term).ok_or(Error::BadArg)
    }
}

/// A reference to a new object.
pub fn make<T: Resource>(env: Env<'_>, value: T) -> Term<'_> {
    ResourceRef::new(value).to_term(env)
}

/// What the VM takes for an object besides its value: the headers of a block, of a magic binary and
/// of a resource, and what some releases of the VM note about the allocating process.
static OVERHEAD: AtomicUsize = AtomicUsize::new(80);

/// What the VM takes for an object besides its value.
pub fn overhead() -> usize {
    OVERHEAD.load(Ordering::Relaxed)
}

/// Measures that; called once, when the library is loaded.
pub fn learn_overhead<T: Resource>(example: impl Fn() -> T) {
    let objects: [ResourceRef<T>; SPECIMENS] =
        std::array::from_fn(|_| ResourceRef::with_room(example(), SPECIMEN));
    let addresses = objects.iter().map(|object| object.address().addr());
    if let Some(bytes) = heap::overhead(SPECIMEN, addresses.collect()) {
        OVERHEAD.store(bytes, Ordering::Relaxed);
    }
}

thread_local! {
    static RELEASED: Cell<u32> = const { Cell::new(0) };
}

/// Notes that this thread released an object of the VM, which a scheduler destroys later.
pub fn count_released() {
    RELEASED.set(RELEASED.get().wrapping_add(1));
}

/// How many this thread has released since it last forgot.
pub fn released() -> u32 {
    RELEASED.get()
}

/// Resets the count.
pub fn forget_released() {
    RELEASED.set(0);
}
