//! The compiler that runs in the process: NVIDIA's libnvrtc.

use std::ffi::{CStr, CString, NulError, OsString, c_char, c_int};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::sys::{self, nvrtcProgram};

use super::library::{self, functions};
use super::{DeviceError, Missing};

/// The path of the library, or of the folder that it is in, where the system does not find it by itself.
pub(super) const VARIABLE: &str = "TLLM_NVRTC";

/// The oldest version that has all the targets.
const OLDEST: (u32, u32) = (12, 0);

functions! {
    /// Functions of the compiler.
    Calls, sys, nvrtcResult;
    nvrtcVersion(*mut c_int, *mut c_int);
    nvrtcCreateProgram(
        *mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    );
    nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char);
    nvrtcGetProgramLogSize(nvrtcProgram, *mut usize);
    nvrtcGetProgramLog(nvrtcProgram, *mut c_char);
    nvrtcGetCUBINSize(nvrtcProgram, *mut usize);
    nvrtcGetCUBIN(nvrtcProgram, *mut c_char);
    nvrtcGetPTXSize(nvrtcProgram, *mut usize);
    nvrtcGetPTX(nvrtcProgram, *mut c_char);
    nvrtcDestroyProgram(*mut nvrtcProgram);
}

/// The compiler.
pub(super) struct Nvrtc {
    calls: Calls,
    version: (u32, u32),
}

/// What is compiled together.
pub(super) struct Unit<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) options: &'a [String],
    /// Whether the result is to be code of a device, not text for the driver to compile.
    pub(super) is_code: bool,
}

impl Nvrtc {
    /// Loads the library: the one that `place` (see [`VARIABLE`]) says, else that of the system.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`]: it is not there, or too old.
    pub(super) fn load(place: Option<OsString>) -> Result<Self, DeviceError> {
        let names = library::names("nvrtc", None);
        // An absolute path: for a name without a slash the system would search.
        let place = place.filter(|place| !place.is_empty()).map(PathBuf::from);
        let place = place.map(|place| std::path::absolute(&place).unwrap_or(place));
        let (candidates, folder, at) = match place {
            Some(place) => {
                let at = format!(" at {VARIABLE}={}", place.display());
                if place.is_dir() {
                    let inside = names.iter().map(|name| place.join(name)).collect();
                    (inside, Some(place), at)
                } else {
                    let folder = place.parent().map(Path::to_owned);
                    (vec![place], folder, at)
                }
            }
            None => (names, None, String::new()),
        };
        let library = library::load(&candidates).map_err(|reason| {
            let reason = format!(
                "NVIDIA's compiler libnvrtc is not installed{at}, or does not load: {reason}"
            );
            Missing::Compiler.because(reason)
        })?;
        let calls = Calls::find(&library).map_err(|function| {
            Missing::CompilerVersion
                .because(format!("libnvrtc{at} is too old: it has no {function}"))
        })?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: there is room for both numbers.
        let answer = unsafe { (calls.nvrtcVersion)(&raw mut major, &raw mut minor) };
        let known = u32::try_from(major).ok().zip(u32::try_from(minor).ok());
        let version = known.filter(|_| answer == 0).unwrap_or_default();
        if version < OLDEST {
            let reason = format!(
                "libnvrtc{at} is version {}.{}, and {}.{} is the oldest that has what is needed",
                version.0, version.1, OLDEST.0, OLDEST.1
            );
            return Err(Missing::CompilerVersion.because(reason));
        }
        if let Some(folder) = folder {
            // The library asks the system for this one by name, which finds what is loaded already. Where it is not there, the system may
            // have it, and else the compiler says so.
            let builtins = format!("libnvrtc-builtins.so.{}.{}", version.0, version.1);
            let _ = library::load(&[folder.join(builtins)]);
        }
        Ok(Self { calls, version })
    }

    #[cfg(test)]
    pub(super) fn recorded(version: (u32, u32), answer: fn(&'static str) -> c_int) -> Self {
        Self {
            calls: Calls::recorded(answer),
            version,
        }
    }

    /// Major and minor version.
    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Compiles, and gives the result and what the compiler says besides.
    ///
    /// # Errors
    /// What the compiler says.
    pub(super) fn compile(&self, unit: &Unit<'_>) -> Result<(Vec<u8>, String), String> {
        let program = Program::new(self.calls, unit).map_err(|error| error.to_string())??;
        let compiled = program.compile(unit.options);
        let log = program.log();
        if let Err(reason) = compiled {
            return Err(format!("{reason}\n{log}"));
        }
        Ok((program.result(unit.is_code)?, log))
    }
}

/// A program of the compiler's.
struct Program {
    calls: Calls,
    program: nvrtcProgram,
}

/// The answer of a call as a result.
fn check(call: &str, answer: c_int) -> Result<(), String> {
    match answer {
        0 => Ok(()),
        // These two are told by the log better than by a number.
        answer if answer == sys::nvrtcResult::NVRTC_ERROR_COMPILATION as c_int => {
            Err("it does not compile".to_owned())
        }
        answer if answer == sys::nvrtcResult::NVRTC_ERROR_INVALID_OPTION as c_int => {
            Err("libnvrtc does not know an option, or the target".to_owned())
        }
        answer => Err(format!("{call} of libnvrtc gives error {answer}")),
    }
}

impl Program {
    fn new(calls: Calls, unit: &Unit<'_>) -> Result<Result<Self, String>, NulError> {
        let name = CString::new(unit.name)?;
        let text = CString::new(unit.text)?;
        let mut names = Vec::new();
        let mut texts = Vec::new();
        for (name, text) in unit.headers {
            names.push(CString::new(*name)?);
            texts.push(CString::new(*text)?);
        }
        let pointers = |list: &[CString]| list.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (name_pointers, text_pointers) = (pointers(&names), pointers(&texts));
        let mut program = std::ptr::null_mut();
        // SAFETY: all texts end with a zero, there are as many names and texts of headers as is said, and the compiler copies them.
        let answer = unsafe {
            (calls.nvrtcCreateProgram)(
                &raw mut program,
                text.as_ptr(),
                name.as_ptr(),
                texts.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        Ok(check("nvrtcCreateProgram", answer).map(|()| Self { calls, program }))
    }

    fn compile(&self, options: &[String]) -> Result<(), String> {
        let options: Result<Vec<CString>, NulError> = options
            .iter()
            .map(|text| CString::new(text.as_str()))
            .collect();
        let options = options.map_err(|error| error.to_string())?;
        let pointers: Vec<*const c_char> = options.iter().map(|text| text.as_ptr()).collect();
        // SAFETY: the program is there while this is; there are as many options as is said, each of which ends with a zero.
        let answer = unsafe {
            (self.calls.nvrtcCompileProgram)(
                self.program,
                pointers.len() as c_int,
                pointers.as_ptr(),
            )
        };
        check("nvrtcCompileProgram", answer)
    }

    fn result(&self, is_code: bool) -> Result<Vec<u8>, String> {
        let calls = &self.calls;
        if is_code {
            self.read(
                "nvrtcGetCUBIN",
                calls.nvrtcGetCUBINSize,
                calls.nvrtcGetCUBIN,
            )
        } else {
            self.read("nvrtcGetPTX", calls.nvrtcGetPTXSize, calls.nvrtcGetPTX)
        }
    }

    /// What the compiler says, nothing where it does not even say that.
    fn log(&self) -> String {
        let calls = &self.calls;
        let read = self.read(
            "nvrtcGetProgramLog",
            calls.nvrtcGetProgramLogSize,
            calls.nvrtcGetProgramLog,
        );
        let text = read.unwrap_or_default();
        let text = CStr::from_bytes_until_nul(&text).map_or(&*text, CStr::to_bytes);
        String::from_utf8_lossy(text).trim_end().to_owned()
    }

    fn read(
        &self,
        call: &str,
        size: unsafe extern "C" fn(nvrtcProgram, *mut usize) -> c_int,
        copy: unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: the program is there while this is, and there is room for the number.
        check(call, unsafe { size(self.program, &raw mut length) })?;
        let mut bytes = vec![0; length];
        // SAFETY: as above, and there is room for as many bytes as the compiler says that it is going to write.
        check(call, unsafe {
            copy(self.program, bytes.as_mut_ptr().cast())
        })?;
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: this made it and has it alone.
        unsafe { (self.calls.nvrtcDestroyProgram)(&raw mut self.program) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_without_the_library_is_told() {
        let folder = tempfile::tempdir().expect("folder");
        let broken = folder.path().join("libnvrtc.so");
        std::fs::write(&broken, "no library").expect("write");
        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).expect("folder");
        for place in [
            empty,
            folder.path().join("none.so"),
            folder.path().to_owned(),
            broken,
        ] {
            let Err(DeviceError::Unavailable { missing, reason }) =
                Nvrtc::load(Some(place.clone().into_os_string()))
            else {
                panic!("{} was loaded", place.display());
            };
            assert_eq!(missing, Missing::Compiler);
            let named = format!("{VARIABLE}={}", place.display());
            assert!(reason.contains(&named), "{reason}");
        }
    }

    #[test]
    fn texts_with_a_zero_are_refused() {
        let nvrtc = Nvrtc::recorded((13, 0), |_| 0);
        let unit = Unit {
            name: "a.cu",
            text: "a\0b",
            headers: &[],
            options: &[],
            is_code: true,
        };
        assert!(nvrtc.compile(&unit).is_err());
        let options = ["-DN=\0".to_owned()];
        let unit = Unit {
            text: "a",
            options: &options,
            ..unit
        };
        assert!(nvrtc.compile(&unit).is_err());
    }
}
