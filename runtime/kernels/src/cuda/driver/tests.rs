use super::recorded::{asked, contexts_left, fail, fail_no_more, fail_once};
use super::*;
use crate::cuda::calls::Driver;
use crate::cuda::process;

const LAUNCH: Launch = Launch {
    grid: [3, 2, 1],
    threads: 128,
    shared_bytes: 0,
};

fn open() -> CudaDevice {
    open_with(recorded::recorded_driver())
}

fn open_with(driver: Driver) -> CudaDevice {
    let context = Context::hold(driver, 1).expect("context");
    let facts = DeviceFacts {
        name: "Recorded".to_owned(),
        ordinal: 1,
        capability: (9, 0),
        multiprocessors: 132,
        memory_bytes: 80 << 30,
        shared_bytes_max: 232_448,
    };
    let compiler = Arc::new(recorded::recorded_compiler((13, 0)));
    let device = CudaDevice::new(context, facts, compiler, Target::SM_90A).expect("device");
    asked();
    device
}

fn source(define: u32) -> KernelSource {
    KernelSource::from_text("a.cu", "text", "a", &[("N", define)])
}

#[test]
fn memory_is_zeroed_before_it_is_given() {
    let device = open();
    let address = device.allocate(4096).expect("memory");
    assert_eq!(
        asked(),
        [
            "cuMemAlloc_v2 4096",
            "cuMemsetD8Async 100 0 4096",
            "cuStreamSynchronize"
        ]
    );
    // SAFETY: just allocated.
    unsafe { device.free(address) };
    assert_eq!(asked(), ["cuMemFree_v2 100"]);
    // The driver has none of no bytes.
    let none = device.allocate(0).expect("memory");
    assert_eq!(
        (none, asked()[0].as_str()),
        (Address(0x200), "cuMemAlloc_v2 1")
    );
    fail("cuStreamSynchronize", 801);
    assert!(matches!(
        device.allocate(8),
        Err(DeviceError::Driver { code: 801, .. })
    ));
    assert_eq!(asked().last().map(String::as_str), Some("cuMemFree_v2 300"));
    fail_no_more();
    let pinned = device.allocate_pinned(3).expect("memory");
    assert_eq!(asked(), ["cuMemHostAlloc 3 1"]);
    // SAFETY: there is room for 3 bytes, which the device filled.
    assert_eq!(unsafe { pinned.cast::<[u8; 3]>().read() }, [0; 3]);
    // SAFETY: just allocated.
    unsafe { device.free_pinned(pinned, 3) };
    assert_eq!(asked(), ["cuMemFreeHost"]);
    assert_eq!(contexts_left(), 0);
}

#[test]
fn memory_that_there_is_not_is_told_with_what_is_left() {
    let device = open();
    fail("cuMemAlloc_v2", 2);
    let expected = DeviceError::Memory {
        what: "device memory",
        bytes: 1 << 40,
        left: 1234,
    };
    assert_eq!(device.allocate(1 << 40), Err(expected));
    fail("cuMemHostAlloc", 2);
    assert!(matches!(
        device.allocate_pinned(64),
        Err(DeviceError::Memory {
            what: "pinned memory",
            bytes: 64,
            left: 1234
        })
    ));
    // The device goes on.
    fail_no_more();
    assert!(device.allocate(64).is_ok());
    assert_eq!(device.free_bytes(), Ok(1234));
    // Where other calls lack memory too.
    fail("cuStreamCreate", 2);
    assert!(matches!(
        device.make_stream(),
        Err(DeviceError::Memory { left: 1234, .. })
    ));
}

#[test]
fn a_lost_device_stays_lost_and_everything_is_given_back() {
    let device = open();
    let stream = device.make_stream().expect("stream");
    let address = device.allocate(16).expect("memory");
    fail_once("cuStreamSynchronize", 700);
    let lost = device.synchronize(stream).expect_err("lost");
    assert!(matches!(
        lost,
        DeviceError::Lost {
            call: "cuStreamSynchronize",
            code: 700,
            ..
        }
    ));
    asked();
    assert_eq!(device.synchronize(stream), Err(lost.clone()));
    assert_eq!(device.allocate(16), Err(lost.clone()));
    assert_eq!(device.kernel(&source(1)), Err(lost.clone()));
    assert_eq!(device.free_bytes(), Err(lost.clone()));
    assert_eq!(device.begin_capture(stream), Err(lost));
    // The driver was not asked again but for what is given back.
    assert!(asked().is_empty());
    // SAFETY: allocated above.
    unsafe { device.free(address) };
    drop(device);
    assert_eq!(
        asked(),
        [
            "cuMemFree_v2 100",
            "cuStreamDestroy_v2",
            "cuStreamDestroy_v2",
            "cuDevicePrimaryCtxRelease_v2"
        ]
    );
}

#[test]
fn what_a_wait_answers_that_nobody_knows_is_for_good() {
    let device = open();
    let stream = device.make_stream().expect("stream");
    fail_once("cuStreamSynchronize", 900);
    assert!(!device.synchronize(stream).expect_err("capture").is_lost());
    assert_eq!(device.synchronize(stream), Ok(()));
    fail_once("cuStreamSynchronize", 722);
    let lost = device.synchronize(stream).expect_err("lost");
    assert!(lost.is_lost());
    assert_eq!(device.allocate(16), Err(lost));
}

/// Tables are behind locks, which another thread of the parent may have had: what is not in them is not looked for.
#[test]
fn a_forked_child_looks_into_no_table() {
    let device = open();
    let stream = device.make_stream().expect("stream");
    asked();
    process::fork();
    let forked = |result: Result<(), DeviceError>| assert_eq!(result, Err(DeviceError::Forked));
    let none = Handle(0);
    forked(device.make_stream().map(drop));
    forked(device.synchronize(none));
    forked(device.begin_capture(none));
    forked(device.end_capture(none).map(drop));
    forked(device.kernel(&source(1)).map(drop));
    // SAFETY: no byte is copied, and nothing runs.
    unsafe {
        forked(device.copy_in(none, [].as_ptr(), Address(0), 0));
        forked(device.copy_out(none, Address(0), [].as_mut_ptr(), 0));
        forked(device.launch(none, none, LAUNCH, &[]));
        forked(device.launch_graph(none, none));
    }
    device.end_stream(stream);
    assert!(device.streams.get(stream).is_ok(), "left where it is");
    drop(device);
    assert!(asked().is_empty());
}

#[test]
fn kernels_are_compiled_and_loaded_once() {
    let device = open();
    let first = device.kernel(&source(1)).expect("kernel");
    let asked_first = asked();
    assert!(asked_first.iter().any(|call| call == "nvrtcCompileProgram"));
    assert_eq!(
        asked_first[asked_first.len() - 4..],
        // All dynamic shared memory but what the kernel has besides.
        [
            "cuModuleLoadData",
            "cuModuleGetFunction",
            "cuFuncGetAttribute 1",
            "cuFuncSetAttribute 8 231424"
        ]
    );
    assert_eq!(device.kernel(&source(1)), Ok(first));
    assert!(asked().is_empty());
    assert_ne!(device.kernel(&source(2)), Ok(first));
    asked();
    // What does not compile or load is told, and the next call tries again.
    for (call, code) in [
        ("nvrtcCompileProgram", 6),
        ("cuModuleLoadData", 218),
        ("cuModuleGetFunction", 500),
    ] {
        fail_once(call, code);
        let error = device.kernel(&source(3)).expect_err("refused");
        let DeviceError::Compile { kernel, target, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(
            (kernel.as_str(), target.as_str()),
            ("a N=3", "sm_90a"),
            "{error}"
        );
    }
    assert!(device.kernel(&source(3)).is_ok());
    let unloaded = asked()
        .iter()
        .filter(|call| *call == "cuModuleUnload")
        .count();
    assert_eq!(unloaded, 1, "the module without the function");
}

#[test]
fn launches_give_the_struct_and_prefer_shared_memory_once() {
    let device = open();
    let stream = device.make_stream().expect("stream");
    let kernel = device.kernel(&source(1)).expect("kernel");
    asked();
    // SAFETY: nothing runs.
    let launch = |launch, bytes: &[u8]| unsafe { device.launch(stream, kernel, launch, bytes) };
    // What is shorter than the kernel's struct is followed by zeros.
    launch(LAUNCH, &[1, 2, 3]).expect("launch");
    assert_eq!(asked(), ["cuLaunchKernel 3 2 1 128 1 1 0 [1, 2, 3, 0, 0]"]);
    let shared = Launch {
        shared_bytes: 99_000,
        ..LAUNCH
    };
    launch(shared, &[9; 5]).expect("launch");
    launch(shared, &[9; 5]).expect("launch");
    let one = "cuLaunchKernel 3 2 1 128 1 1 99000 [9, 9, 9, 9, 9]";
    assert_eq!(asked(), ["cuFuncSetAttribute 9 100", one, one]);
    launch(LAUNCH, &[0; ARGUMENT_BYTES_MAX]).expect("the limit");
    let error = launch(LAUNCH, &[0; ARGUMENT_BYTES_MAX + 1]).expect_err("past it");
    assert!(matches!(error, DeviceError::Size { found, .. } if found == ARGUMENT_BYTES_MAX + 1));
    fail("cuLaunchKernel", 701);
    assert!(matches!(
        launch(LAUNCH, &[0]),
        Err(DeviceError::Driver { code: 701, .. })
    ));
    fail("cuLaunchKernel", 719);
    assert!(launch(LAUNCH, &[0]).expect_err("lost").is_lost());
    assert_eq!(contexts_left(), 0);
}

#[test]
fn graphs_are_captured_run_and_ended_without_a_wait() {
    let device = open();
    let stream = device.make_stream().expect("stream");
    asked();
    device.begin_capture(stream).expect("capture");
    let graph = device.end_capture(stream).expect("graph");
    assert_eq!(
        asked(),
        [
            "cuStreamBeginCapture_v2",
            "cuStreamEndCapture",
            "cuGraphInstantiateWithFlags",
            "cuGraphDestroy"
        ]
    );
    // SAFETY: nothing runs.
    unsafe { device.launch_graph(stream, graph) }.expect("run");
    device.end_graph(graph);
    assert_eq!(
        asked(),
        ["cuGraphLaunch", "cuGraphExecDestroy"],
        "a wait would break off a capture of the stream"
    );
    device.end_stream(stream);
    assert_eq!(asked(), ["cuStreamSynchronize", "cuStreamDestroy_v2"]);
    let stream = device.make_stream().expect("stream");
    // SAFETY: nothing runs.
    let gone = unsafe { device.launch_graph(stream, graph) };
    assert!(matches!(gone, Err(DeviceError::Order { .. })));

    let stream = device.make_stream().expect("stream");
    device.begin_capture(stream).expect("capture");
    fail_once("cuStreamEndCapture", 901);
    assert!(matches!(
        device.end_capture(stream),
        Err(DeviceError::Driver { code: 901, .. })
    ));
    fail_once("cuGraphInstantiateWithFlags", 1);
    asked();
    assert!(device.end_capture(stream).is_err());
    assert_eq!(
        asked().last().map(String::as_str),
        Some("cuGraphDestroy"),
        "nothing is left behind"
    );
    assert_eq!(contexts_left(), 0);
}

#[test]
fn a_capture_without_a_graph_is_an_error() {
    unsafe extern "C" fn nothing(
        _: cudarc::driver::sys::CUstream,
        graph: *mut cudarc::driver::sys::CUgraph,
    ) -> i32 {
        // SAFETY: the caller has room for it.
        unsafe { graph.write(std::ptr::null_mut()) };
        0
    }
    let mut driver = recorded::recorded_driver();
    driver.calls.cuStreamEndCapture = nothing;
    let device = open_with(driver);
    let stream = device.make_stream().expect("stream");
    assert!(matches!(
        device.end_capture(stream),
        Err(DeviceError::Order { .. })
    ));
}

#[test]
fn numbers_of_nothing_are_refused_by_every_call() {
    let device = open();
    let (stream, gone) = (
        device.make_stream().expect("stream"),
        device.make_stream().expect("stream"),
    );
    device.end_stream(gone);
    device.end_stream(gone);
    device.end_graph(Handle(0));
    let order = |result: Result<(), DeviceError>| {
        assert!(
            matches!(result, Err(DeviceError::Order { .. })),
            "{result:?}"
        )
    };
    for bad in [gone, Handle(0), Handle(u64::MAX)] {
        order(device.synchronize(bad));
        order(device.begin_capture(bad));
        order(device.end_capture(bad).map(drop));
        // SAFETY: no byte is copied, and nothing runs.
        unsafe {
            order(device.copy_in(bad, [].as_ptr(), Address(0), 0));
            order(device.copy_out(bad, Address(0), [].as_mut_ptr(), 0));
            order(device.launch(bad, Handle(1), LAUNCH, &[]));
            order(device.launch(stream, bad, LAUNCH, &[]));
            order(device.launch_graph(stream, bad));
        }
    }
}

#[test]
fn copies_are_asked_for_and_those_of_nothing_are_not() {
    let device = open();
    let stream = device.make_stream().expect("stream");
    asked();
    let mut bytes = [0_u8; 4];
    // SAFETY: nothing is copied by this driver.
    unsafe {
        device
            .copy_in(stream, bytes.as_ptr(), Address(256), 4)
            .expect("copy");
        device
            .copy_out(stream, Address(256), bytes.as_mut_ptr(), 4)
            .expect("copy");
        device
            .copy_in(stream, bytes.as_ptr(), Address(256), 0)
            .expect("nothing");
        device
            .copy_out(stream, Address(256), bytes.as_mut_ptr(), 0)
            .expect("nothing");
    }
    assert_eq!(asked(), ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"]);
}
