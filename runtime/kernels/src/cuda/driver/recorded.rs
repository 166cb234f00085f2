//! A driver that does nothing, answers as the tests ask and tells what it was asked for. Each thread has its own.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_uint, c_void};

use cudarc::driver::sys::{
    CUdevice, CUdevice_attribute as Attribute, CUdeviceptr, CUfunction, CUfunction_attribute,
    CUgraph, CUstream,
};

use super::super::calls::{Calls, Driver};
use super::super::compile::Compiler;

#[derive(Default)]
struct State {
    asked: Vec<String>,
    failing: Option<(&'static str, c_int, bool)>,
    allocations: u64,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// From now on, calls of that name answer so.
pub(in super::super) fn fail(name: &'static str, code: c_int) {
    STATE.with_borrow_mut(|state| state.failing = Some((name, code, false)));
}

/// The next call of that name answers so.
pub(in super::super) fn fail_once(name: &'static str, code: c_int) {
    STATE.with_borrow_mut(|state| state.failing = Some((name, code, true)));
}

/// No call fails any more.
pub(in super::super) fn fail_no_more() {
    STATE.with_borrow_mut(|state| state.failing = None);
}

/// What was asked for since the last time, without what makes the context current.
pub(in super::super) fn asked() -> Vec<String> {
    let mut asked = STATE.with_borrow_mut(|state| std::mem::take(&mut state.asked));
    asked.retain(|call| !call.starts_with("cuCtx"));
    asked
}

/// The contexts that were made current, less those that were taken off again, since the last time.
pub(in super::super) fn contexts_left() -> usize {
    let asked = STATE.with_borrow_mut(|state| std::mem::take(&mut state.asked));
    let count = |name: &str| asked.iter().filter(|call| call.starts_with(name)).count();
    count("cuCtxPushCurrent") - count("cuCtxPopCurrent")
}

fn answer(name: &'static str) -> c_int {
    asked_for(name, name.to_owned())
}

fn asked_for(name: &'static str, text: String) -> c_int {
    STATE.with_borrow_mut(|state| {
        state.asked.push(text);
        match state.failing {
            Some((failing, code, is_once)) if failing == name => {
                if is_once {
                    state.failing = None;
                }
                code
            }
            _ => 0,
        }
    })
}

/// A function that gives one thing: on success it is written where the caller has room for it.
fn give<T>(name: &'static str, text: String, room: *mut T, value: T) -> c_int {
    let answer = asked_for(name, text);
    if answer == 0 {
        // SAFETY: the caller has room for it.
        unsafe { room.write(value) };
    }
    answer
}

unsafe extern "C" fn version(version: *mut c_int) -> c_int {
    give("cuDriverGetVersion", String::new(), version, 13_000)
}

unsafe extern "C" fn count(count: *mut c_int) -> c_int {
    give("cuDeviceGetCount", String::new(), count, 3)
}

unsafe extern "C" fn device(device: *mut CUdevice, ordinal: c_int) -> c_int {
    give("cuDeviceGet", String::new(), device, ordinal)
}

unsafe extern "C" fn name(name: *mut c_char, length: c_int, device: CUdevice) -> c_int {
    let text = format!("Recorded {device}\0");
    assert!(text.len() <= length as usize);
    // SAFETY: the caller has room for so many bytes.
    unsafe { name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
    0
}

unsafe extern "C" fn attribute(value: *mut c_int, which: Attribute, device: CUdevice) -> c_int {
    let (major, minor) = [(7, 5), (9, 0), (8, 6)][device as usize];
    let known = match which {
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => major,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => minor,
        Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => 132,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => 232_448,
        other => panic!("{other:?}"),
    };
    give("cuDeviceGetAttribute", String::new(), value, known)
}

unsafe extern "C" fn memory(bytes: *mut usize, _device: CUdevice) -> c_int {
    give("cuDeviceTotalMem", String::new(), bytes, 80 << 30)
}

unsafe extern "C" fn free_memory(free: *mut usize, _total: *mut usize) -> c_int {
    give("cuMemGetInfo_v2", "cuMemGetInfo_v2".to_owned(), free, 1234)
}

unsafe extern "C" fn allocate(address: *mut CUdeviceptr, bytes: usize) -> c_int {
    let number = STATE.with_borrow_mut(|state| {
        state.allocations += 1;
        state.allocations
    });
    give(
        "cuMemAlloc_v2",
        format!("cuMemAlloc_v2 {bytes}"),
        address,
        number << 8,
    )
}

unsafe extern "C" fn free(address: CUdeviceptr) -> c_int {
    asked_for("cuMemFree_v2", format!("cuMemFree_v2 {address:x}"))
}

unsafe extern "C" fn zero(
    address: CUdeviceptr,
    value: u8,
    bytes: usize,
    _stream: CUstream,
) -> c_int {
    asked_for(
        "cuMemsetD8Async",
        format!("cuMemsetD8Async {address:x} {value} {bytes}"),
    )
}

/// Few and small: never given back.
unsafe extern "C" fn allocate_pinned(room: *mut *mut c_void, bytes: usize, flags: c_uint) -> c_int {
    let memory = Box::leak(vec![0xff_u8; bytes].into_boxed_slice());
    give(
        "cuMemHostAlloc",
        format!("cuMemHostAlloc {bytes} {flags}"),
        room,
        memory.as_mut_ptr().cast(),
    )
}

unsafe extern "C" fn end_capture(_stream: CUstream, graph: *mut CUgraph) -> c_int {
    let graph_of_tests = std::ptr::without_provenance_mut(64);
    give(
        "cuStreamEndCapture",
        "cuStreamEndCapture".to_owned(),
        graph,
        graph_of_tests,
    )
}

unsafe extern "C" fn get_attribute(
    value: *mut c_int,
    which: CUfunction_attribute,
    _function: CUfunction,
) -> c_int {
    give(
        "cuFuncGetAttribute",
        format!("cuFuncGetAttribute {}", which as u32),
        value,
        1024,
    )
}

unsafe extern "C" fn set_attribute(
    _: CUfunction,
    which: CUfunction_attribute,
    value: c_int,
) -> c_int {
    asked_for(
        "cuFuncSetAttribute",
        format!("cuFuncSetAttribute {} {value}", which as u32),
    )
}

unsafe extern "C" fn launch(
    _function: CUfunction,
    x: c_uint,
    y: c_uint,
    z: c_uint,
    threads: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    shared: c_uint,
    _stream: CUstream,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    assert!(extra.is_null());
    // SAFETY: there is one struct, of 5 bytes at least as the tests have it.
    let first: [u8; 5] = unsafe { (*parameters).cast::<[u8; 5]>().read() };
    asked_for(
        "cuLaunchKernel",
        format!("cuLaunchKernel {x} {y} {z} {threads} {threads_y} {threads_z} {shared} {first:?}"),
    )
}

/// A driver with three devices, of the capabilities 7.5, 9.0 and 8.6.
pub(in super::super) fn recorded_driver() -> Driver {
    let calls = Calls {
        cuDriverGetVersion: version,
        cuDeviceGetCount: count,
        cuDeviceGet: device,
        cuDeviceGetName: name,
        cuDeviceGetAttribute: attribute,
        cuDeviceTotalMem_v2: memory,
        cuMemGetInfo_v2: free_memory,
        cuMemAlloc_v2: allocate,
        cuMemFree_v2: free,
        cuMemsetD8Async: zero,
        cuMemHostAlloc: allocate_pinned,
        cuStreamEndCapture: end_capture,
        cuFuncGetAttribute: get_attribute,
        cuFuncSetAttribute: set_attribute,
        cuLaunchKernel: launch,
        ..Calls::recorded(answer)
    };
    Driver {
        calls,
        error_name: None,
        error_text: None,
    }
}

/// A compiler of that version whose images are empty, without a cache.
pub(in super::super) fn recorded_compiler(version: (u32, u32)) -> Compiler {
    Compiler::recorded(version, answer)
}
