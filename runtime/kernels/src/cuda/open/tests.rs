use super::super::calls::Calls;
use super::super::driver::recorded::{self, recorded_compiler, recorded_driver};
use super::*;

fn missing(result: Result<Arc<dyn Device>, DeviceError>) -> (Missing, String) {
    match result {
        Err(DeviceError::Unavailable { missing, reason }) => (missing, reason),
        other => panic!("{other:?}"),
    }
}

/// Opens a device of the recorded driver, some of whose calls are replaced.
fn open_changed(
    ordinal: Option<usize>,
    change: impl FnOnce(&mut Calls),
) -> Result<Arc<dyn Device>, DeviceError> {
    let mut driver = recorded_driver();
    change(&mut driver.calls);
    open_with(driver, ordinal, || Ok(recorded_compiler((13, 0))))
}

#[test]
fn a_system_without_the_driver_says_so() {
    if Driver::load().is_ok() {
        println!("skipped: there is a driver");
        return;
    }
    let (missing, reason) = missing(open(&OpenOptions::default()));
    assert_eq!(missing, Missing::Driver);
    assert!(
        reason.contains("driver is not installed") && reason.contains("libcuda.so.1"),
        "{reason}"
    );
}

#[test]
fn facts_are_those_of_the_driver() {
    let device = open_changed(None, |_| {}).expect("device");
    let facts = device.facts();
    assert_eq!((facts.ordinal, facts.capability), (1, (9, 0)));
    assert_eq!(
        (facts.name.as_str(), facts.multiprocessors),
        ("Recorded 1", 132)
    );
    assert_eq!(
        (facts.memory_bytes, facts.shared_bytes_max),
        (80 << 30, 232_448)
    );
}

#[test]
fn the_device_that_was_asked_for_is_opened_or_refused() {
    let device = open_changed(Some(2), |_| {}).expect("device");
    assert_eq!(device.facts().ordinal, 2);
    let (what, reason) = missing(open_changed(Some(3), |_| {}));
    assert_eq!(
        (what, reason.as_str()),
        (Missing::Device, "there is no device 3: the driver has 3")
    );
    let (what, reason) = missing(open_changed(Some(0), |_| {}));
    assert_eq!(what, Missing::Capability);
    assert!(
        reason.contains("(Recorded 0) has compute capability 7.5"),
        "{reason}"
    );
    assert_eq!(
        missing(open_changed(Some(usize::MAX), |_| {})).0,
        Missing::Device
    );
}

#[test]
fn what_the_driver_lacks_is_told() {
    unsafe extern "C" fn no_devices(count: *mut c_int) -> c_int {
        // SAFETY: the caller has room for the number.
        unsafe { *count = 0 };
        0
    }
    unsafe extern "C" fn old(version: *mut c_int) -> c_int {
        // SAFETY: as above.
        unsafe { *version = 11_080 };
        0
    }
    unsafe extern "C" fn older_than_the_compiler(version: *mut c_int) -> c_int {
        // SAFETY: as above.
        unsafe { *version = 12_090 };
        0
    }
    let (what, _) = missing(open_changed(None, |calls| {
        calls.cuDeviceGetCount = no_devices
    }));
    assert_eq!(what, Missing::Device);
    let (what, reason) = missing(open_changed(None, |calls| calls.cuDriverGetVersion = old));
    assert_eq!(what, Missing::DriverVersion);
    assert!(
        reason.contains("CUDA 11.8") && reason.contains("12.0"),
        "{reason}"
    );
    let newer = open_changed(None, |calls| {
        calls.cuDriverGetVersion = older_than_the_compiler
    });
    let (what, reason) = missing(newer);
    assert_eq!(what, Missing::DriverVersion);
    assert!(
        reason.contains("CUDA 12.9") && reason.contains("libnvrtc 13.0"),
        "{reason}"
    );

    for (code, expected) in [
        (100, Missing::Device),
        (34, Missing::Driver),
        (803, Missing::Driver),
    ] {
        recorded::fail("cuInit", code);
        assert_eq!(missing(open_changed(None, |_| {})).0, expected, "{code}");
    }
    recorded::fail("cuDeviceGetAttribute", 1);
    assert_eq!(missing(open_changed(None, |_| {})).0, Missing::Device);
    // Another process has the first that could be used: it is the next one's turn, where any will do.
    recorded::fail("cuDevicePrimaryCtxRetain", 46);
    assert_eq!(missing(open_changed(Some(1), |_| {})).0, Missing::Context);
    recorded::fail_once("cuDevicePrimaryCtxRetain", 46);
    assert_eq!(
        open_changed(None, |_| {}).expect("device").facts().ordinal,
        2
    );
    // So it is where its memory is full.
    recorded::fail_once("cuStreamCreate", 2);
    assert_eq!(
        open_changed(None, |_| {}).expect("device").facts().ordinal,
        2
    );
}

#[test]
fn the_compiler_is_looked_for_after_the_device() {
    let none = || Err(Missing::Compiler.because("none".to_owned()));
    assert_eq!(
        missing(open_with(recorded_driver(), None, none)).0,
        Missing::Compiler
    );
    assert_eq!(
        missing(open_with(recorded_driver(), Some(0), none)).0,
        Missing::Capability
    );
}

#[test]
fn versions_of_driver_and_compiler_have_to_fit() {
    let fits = |driver, compiler, target| check_versions(driver, compiler, target).is_ok();
    assert!(fits((13, 0), (13, 0), Target::SM_80));
    assert!(fits((13, 0), (13, 2), Target::SM_80));
    assert!(fits((13, 0), (12, 9), Target::SM_80));
    assert!(!fits((12, 9), (13, 0), Target::SM_80));
    // Text has to be of a version that the driver knows.
    assert!(fits((13, 0), (13, 0), Target::COMPUTE_90));
    assert!(fits((13, 0), (12, 9), Target::COMPUTE_90));
    assert!(!fits((13, 0), (13, 1), Target::COMPUTE_90));
}
