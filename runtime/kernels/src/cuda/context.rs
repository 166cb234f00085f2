//! The device's primary context, which the process shares: held while a device is open, current in a thread only during a call.

use std::ffi::c_int;
use std::sync::OnceLock;

use cudarc::driver::sys::{CUcontext, CUdevice};

use super::calls::{Driver, Fault, fault, fault_of_wait};
use super::{DeviceError, Missing, process};

/// An address by which the driver knows something of its own.
pub(super) struct Raw<T>(pub(super) *mut T);

// SAFETY: nothing is read or written at the address but by the driver, whose functions may be called from any thread.
unsafe impl<T> Send for Raw<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Raw<T> {}

/// A context that is held.
pub(super) struct Context {
    pub(super) driver: Driver,
    device: CUdevice,
    context: Raw<<CUcontext as Pointer>::Target>,
    /// What the driver does not carry over a fork.
    process: u32,
    /// Why the device is of no use any more.
    lost: OnceLock<DeviceError>,
}

/// What a pointer points at: the driver's types are named as pointers.
pub(super) trait Pointer {
    /// It.
    type Target;
}

impl<T> Pointer for *mut T {
    type Target = T;
}

/// While this is, the context is current in the thread.
pub(super) struct Entered<'a>(&'a Context);

impl Context {
    /// Holds the primary context of a device.
    ///
    /// # Errors
    /// What the driver says.
    pub(super) fn hold(driver: Driver, device: CUdevice) -> Result<Self, DeviceError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver is started, which gave the device, and there is room for the context.
        let answer = unsafe { (driver.calls.cuDevicePrimaryCtxRetain)(&raw mut context, device) };
        if answer != 0 {
            let reason = format!(
                "the driver does not give the device: {}",
                driver.describe(answer)
            );
            return Err(Missing::Context.because(reason));
        }
        Ok(Self {
            driver,
            device,
            context: Raw(context),
            process: process::id(),
            lost: OnceLock::new(),
        })
    }

    /// Makes the context current. What was current, of the process's other users of the driver, is so again afterwards.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] after a call that told so, [`DeviceError::Forked`].
    pub(super) fn enter(&self) -> Result<Entered<'_>, DeviceError> {
        self.check_own()?;
        if let Some(error) = self.lost.get() {
            return Err(error.clone());
        }
        // SAFETY: the context is held.
        let answer = unsafe { (self.driver.calls.cuCtxPushCurrent_v2)(self.context.0) };
        self.check("cuCtxPushCurrent", answer)?;
        Ok(Entered(self))
    }

    /// As [`Context::enter`], to give something back, which may work with a lost device too; nothing where it does not work.
    pub(super) fn enter_to_end(&self) -> Option<Entered<'_>> {
        if !self.is_own() {
            return None;
        }
        // SAFETY: the context is held.
        let answer = unsafe { (self.driver.calls.cuCtxPushCurrent_v2)(self.context.0) };
        (answer == 0).then_some(Entered(self))
    }

    /// Whether this is the process that opened the device. What is behind a lock is asked for after this: in a child after a fork the lock
    /// stays taken where another thread of the parent had it.
    pub(super) fn is_own(&self) -> bool {
        process::id() == self.process
    }

    /// As [`Context::is_own`].
    ///
    /// # Errors
    /// [`DeviceError::Forked`].
    pub(super) fn check_own(&self) -> Result<(), DeviceError> {
        if self.is_own() {
            return Ok(());
        }
        Err(DeviceError::Forked)
    }

    /// What an answer of the driver is as a result; remembers what is for good.
    ///
    /// # Errors
    /// All answers but 0.
    pub(super) fn check(&self, call: &'static str, answer: c_int) -> Result<(), DeviceError> {
        self.check_as(fault, call, answer)
    }

    /// As [`Context::check`], for calls that wait for work.
    ///
    /// # Errors
    /// All answers but 0.
    pub(super) fn check_wait(&self, call: &'static str, answer: c_int) -> Result<(), DeviceError> {
        self.check_as(fault_of_wait, call, answer)
    }

    fn check_as(
        &self,
        fault: fn(c_int) -> Fault,
        call: &'static str,
        answer: c_int,
    ) -> Result<(), DeviceError> {
        if answer == 0 {
            return Ok(());
        }
        let reason = self.driver.describe(answer);
        Err(match fault(answer) {
            Fault::Lost => {
                let error = DeviceError::Lost {
                    call,
                    code: answer,
                    reason,
                };
                self.lost.get_or_init(|| error).clone()
            }
            Fault::Memory => DeviceError::Memory {
                what: call,
                bytes: 0,
                left: self.free_bytes().unwrap_or(0),
            },
            Fault::Call => DeviceError::Driver {
                call,
                code: answer,
                reason,
            },
        })
    }

    /// Bytes that are free. The context is current.
    pub(super) fn free_bytes(&self) -> Result<u64, DeviceError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: there is room for both numbers.
        let answer = unsafe { (self.driver.calls.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        if answer == 0 {
            return Ok(free as u64);
        }
        // Not by way of `check`, which comes here.
        Err(DeviceError::Driver {
            call: "cuMemGetInfo",
            code: answer,
            reason: self.driver.describe(answer),
        })
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: there is room for the context; what is taken off is what `enter` put on, as calls between them leave what is current.
        unsafe { (self.0.driver.calls.cuCtxPopCurrent_v2)(&raw mut context) };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_own() {
            // SAFETY: it was retained once, and nothing made in it by this library is left, since all of that holds this.
            unsafe { (self.driver.calls.cuDevicePrimaryCtxRelease_v2)(self.device) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::recorded;
    use super::*;

    #[test]
    fn a_forked_child_is_refused_and_gives_nothing_back() {
        let context = Context::hold(recorded::recorded_driver(), 1).expect("context");
        assert!(context.enter().is_ok());
        assert!(context.enter_to_end().is_some());
        recorded::asked();
        process::fork();
        assert_eq!(context.enter().err(), Some(DeviceError::Forked));
        assert!(context.enter_to_end().is_none());
        drop(context);
        assert!(recorded::asked().is_empty());
    }

    #[test]
    fn a_context_that_cannot_be_made_current_is_not_taken_off() {
        let context = Context::hold(recorded::recorded_driver(), 1).expect("context");
        recorded::fail("cuCtxPushCurrent_v2", 201);
        assert!(context.enter().is_err_and(|error| error.is_lost()));
        assert!(context.enter_to_end().is_none());
        assert_eq!(recorded::asked(), ["cuDevicePrimaryCtxRetain"]);
    }
}
