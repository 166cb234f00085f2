//! NVIDIA's libraries, loaded when they are asked for, and their functions.
//!
//! The functions are looked up here, not by cudarc, whose own loading ends the process where a library or a function is missing; and they
//! give numbers, not cudarc's enums, since a newer library may answer with a number that no enum has. What cudarc knows of the headers,
//! types and the kinds of arguments, is what they are declared with, and the compiler holds the two together.

use std::mem::ManuallyDrop;
use std::path::PathBuf;

use libloading::Library;

/// A library that stays loaded: threads of its own may run its code to the end of the process.
pub(super) type Loaded = ManuallyDrop<Library>;

/// Loads the first that is there.
///
/// # Errors
/// What the system says of each of them.
pub(super) fn load(candidates: &[PathBuf]) -> Result<Loaded, String> {
    let mut reasons = Vec::new();
    for candidate in candidates {
        // SAFETY: the library is NVIDIA's, in the place where the system or the operator says that it is; its constructors are trusted as
        // those of the libraries that the process is linked with.
        match unsafe { Library::new(candidate) } {
            Ok(library) => return Ok(ManuallyDrop::new(library)),
            // The system's own words stand behind the error's.
            Err(error) => {
                let words = std::error::Error::source(&error).map(ToString::to_string);
                reasons.push((candidate, words.unwrap_or_else(|| error.to_string())));
            }
        }
    }
    // Where none is there, the last names are as good as the first; a library that is there but does not load says more.
    let telling = reasons
        .iter()
        .find(|(candidate, _)| candidate.exists())
        .or(reasons.first());
    Err(telling.map_or_else(String::new, |(_, reason)| reason.clone()))
}

/// The names under which the system may have a library, `first` before those that cudarc knows.
pub(super) fn names(name: &str, first: Option<&str>) -> Vec<PathBuf> {
    let known = cudarc::get_lib_name_candidates(name);
    first
        .map(PathBuf::from)
        .into_iter()
        .chain(known.into_iter().map(PathBuf::from))
        .collect()
}

/// A table of functions of a library that give a number, 0 where all went well.
///
/// They take what cudarc's declarations take, which were made from NVIDIA's headers: anything else does not compile.
macro_rules! functions {
    ($(#[$note:meta])* $table:ident, $sys:ident, $answer:ident; $($name:ident($($kind:ty),*);)*) => {
        $(#[$note])*
        #[allow(non_snake_case, reason = "the library's own names")]
        #[derive(Clone, Copy)]
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($kind),*) -> std::ffi::c_int,)*
        }

        impl $table {
            /// Looks all of them up.
            ///
            /// # Errors
            /// The name of one that is missing.
            pub(super) fn find(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        // SAFETY: a function of this name has these arguments, as is checked below, and gives an enum of C's width.
                        let found = unsafe { library.get(concat!(stringify!($name), "\0")) };
                        *found.map_err(|_| stringify!($name))?
                    },)*
                })
            }
        }

        $(const _: unsafe fn($($kind),*) -> $sys::$answer = $sys::$name;)*

        /// Functions that do nothing but tell the tests that they were called, and answer what these ask for.
        #[cfg(test)]
        impl $table {
            pub(super) fn recorded(answer: fn(&'static str) -> std::ffi::c_int) -> Self {
                super::library::ANSWER.set(Some(answer));
                $(
                    #[allow(non_snake_case, reason = "the library's own names")]
                    unsafe extern "C" fn $name($(_: $kind),*) -> std::ffi::c_int {
                        super::library::ANSWER.get().map_or(999, |answer| answer(stringify!($name)))
                    }
                )*
                Self { $($name,)* }
            }
        }
    };
}
pub(super) use functions;

#[cfg(test)]
pub(super) type Answer = fn(&'static str) -> std::ffi::c_int;

#[cfg(test)]
thread_local! {
    /// What answers for functions that the tests stand in for.
    pub(super) static ANSWER: std::cell::Cell<Option<Answer>> = const { std::cell::Cell::new(None) };
}
