use super::fake::fake;
use crate::cuda::process::fork;
use crate::cuda::{Buffer, DeviceError, Graph, Pinned, Stream};

#[test]
fn a_budget_is_kept_to_the_byte() {
    let (memory, device) = fake((8, 0), Some(4096));
    let first = Buffer::<f32>::zeroed(&memory, "first", 512).unwrap();
    let second = Buffer::<u8>::zeroed(&memory, "second", 2048).unwrap();
    assert_eq!(memory.used_bytes(), 4096);
    let error = Buffer::<u8>::zeroed(&memory, "third", 1).unwrap_err();
    let expected = DeviceError::Memory {
        what: "third",
        bytes: 16,
        left: 0,
    };
    assert_eq!(error, expected);
    assert_eq!(device.state().allocations, 2, "the device was not asked");
    drop(first);
    assert_eq!(memory.used_bytes(), 2048);
    let error = Buffer::<u8>::zeroed(&memory, "third", 2049).unwrap_err();
    assert!(matches!(error, DeviceError::Memory { left: 2048, .. }));
    drop(second);
    assert_eq!((memory.used_bytes(), device.live()), (0, 0));
    // Sizes that overflow are refused as well.
    let error = Buffer::<f32>::zeroed(&memory, "all", usize::MAX).unwrap_err();
    assert!(matches!(error, DeviceError::Memory { .. }));
}

#[test]
fn what_the_device_refuses_is_not_counted() {
    let (memory, _device) = fake((8, 0), None);
    let error = Buffer::<u8>::zeroed(&memory, "weights", 1 << 31).unwrap_err();
    let expected = DeviceError::Memory {
        what: "weights",
        bytes: 1 << 31,
        left: 1 << 30,
    };
    assert_eq!(error, expected);
    assert_eq!(memory.used_bytes(), 0);
}

#[test]
fn values_come_back_in_as_many_pieces_as_it_takes() {
    let (memory, _device) = fake((8, 0), None);
    let mut stream = Stream::new(&memory).unwrap();
    let values: Vec<u32> = (0..(5 << 20) / 2).collect();
    let buffer = Buffer::uploaded(&mut stream, "values", &values).unwrap();
    let mut back = vec![0; values.len()];
    stream.read(&buffer, &mut back).unwrap();
    assert!(back == values);
    let error = stream.read(&buffer, &mut back[1..]).unwrap_err();
    assert!(matches!(error, DeviceError::Size { .. }));
    let mut part = [0; 3];
    let at = buffer.part(2_000_000..2_000_003).unwrap();
    stream.read(&at, &mut part).unwrap();
    assert_eq!(part, [2_000_000, 2_000_001, 2_000_002]);
    assert!(buffer.part(1..2).is_err(), "not at a multiple of 16 bytes");
    assert!(buffer.part(0..values.len() + 1).is_err());
}

#[test]
fn a_dropped_buffer_stays_until_the_stream_is_done() {
    let (memory, device) = fake((8, 0), None);
    let mut stream = Stream::new(&memory).unwrap();
    let host = Pinned::<u32>::zeroed(&memory, "host", 16).unwrap();
    let other = Pinned::<u32>::zeroed(&memory, "host", 17).unwrap();
    let buffer = Buffer::<u32>::zeroed(&memory, "buffer", 16).unwrap();
    host.with(|values| values.fill(3)).unwrap();
    stream.copy_in(&host, &buffer).unwrap();
    stream.copy_out(&buffer, &other).unwrap();
    assert!(stream.copy_in(&other, &buffer).is_err());
    drop(buffer);
    assert_eq!(device.live(), 3);
    assert!(matches!(
        host.with(|_values| ()),
        Err(DeviceError::Order { .. })
    ));
    stream.synchronize().unwrap();
    assert_eq!(device.live(), 2);
    assert_eq!(host.with(|values| values[0]), Ok(3));
    assert_eq!(other.with(|values| (values[15], values[16])), Ok((3, 0)));
    // The host has it: no copy may begin.
    let buffer = Buffer::<u32>::zeroed(&memory, "buffer", 16).unwrap();
    let asked = host.with(|_values| stream.copy_in(&host, &buffer)).unwrap();
    assert!(matches!(asked, Err(DeviceError::Order { .. })));
}

#[test]
fn what_may_still_run_is_never_given_back() {
    let (memory, device) = fake((8, 0), None);
    let failure = |code| DeviceError::Driver {
        call: "wait",
        code,
        reason: String::new(),
    };
    let mut stream = Stream::new(&memory).unwrap();
    let host = Pinned::<u32>::zeroed(&memory, "host", 4).unwrap();
    let buffer = Buffer::<u32>::zeroed(&memory, "buffer", 4).unwrap();
    stream.copy_in(&host, &buffer).unwrap();
    drop(buffer);
    device.state().failure = Some(failure(1));
    assert_eq!(stream.synchronize(), Err(failure(1)));
    assert_eq!(device.live(), 2);
    assert!(host.with(|_values| ()).is_err());
    device.state().failure = Some(failure(2));
    drop(stream);
    assert_eq!(device.live(), 2, "leaked rather than freed");
    // Nor when the device is lost: another stream's call may have told so.
    let mut stream = Stream::new(&memory).unwrap();
    let buffer = Buffer::<u32>::zeroed(&memory, "buffer", 4).unwrap();
    let host = Pinned::<u32>::zeroed(&memory, "host", 4).unwrap();
    stream.copy_in(&host, &buffer).unwrap();
    drop(buffer);
    let lost = DeviceError::Lost {
        call: "wait",
        code: 700,
        reason: String::new(),
    };
    device.state().failure = Some(lost.clone());
    let error = stream.synchronize().unwrap_err();
    assert!(error.is_lost() && error == lost);
    assert_eq!(device.live(), 4);
    assert!(host.with(|_values| ()).is_err());
    device.state().failure = Some(lost);
    drop(stream);
    assert_eq!(device.live(), 4, "leaked rather than freed");
}

#[test]
fn a_forked_child_does_not_touch_memory_for_copies() {
    let (memory, device) = fake((8, 0), None);
    let mut stream = Stream::new(&memory).unwrap();
    let host = Pinned::<u32>::zeroed(&memory, "host", 4).unwrap();
    let buffer = Buffer::<u32>::zeroed(&memory, "buffer", 4).unwrap();
    let graph = stream.capture(|stream| stream.copy_in(&host, &buffer));
    let graph = graph.unwrap();
    fork();
    let written = host.with(|_values| panic!("the parent's memory"));
    assert_eq!(written, Err(DeviceError::Forked));
    assert_eq!(stream.copy_in(&host, &buffer), Err(DeviceError::Forked));
    assert_eq!(stream.launch_graph(&graph), Err(DeviceError::Forked));
    assert_eq!(device.state().copies(), 0, "none was asked for");
}

#[test]
fn a_graph_holds_what_it_uses() {
    let (memory, device) = fake((8, 0), None);
    let mut stream = Stream::new(&memory).unwrap();
    let host = Pinned::<u32>::zeroed(&memory, "host", 4).unwrap();
    let buffer = Buffer::<u32>::zeroed(&memory, "buffer", 4).unwrap();
    let graph: Graph = stream
        .capture(|stream| {
            assert!(stream.is_capturing());
            assert!(matches!(
                stream.synchronize(),
                Err(DeviceError::Order { .. })
            ));
            assert!(stream.write(&buffer, &[1; 4]).is_err());
            stream.copy_in(&host, &buffer)
        })
        .unwrap();
    drop(buffer);
    assert_eq!((device.live(), device.state().graphs), (2, 1));
    host.with(|values| values.fill(1)).unwrap();
    stream.launch_graph(&graph).unwrap();
    assert!(host.with(|_values| ()).is_err());
    drop(graph);
    assert_eq!(device.state().graphs, 1, "it may still run");
    stream.synchronize().unwrap();
    assert_eq!((device.live(), device.state().graphs), (1, 0));
    host.with(|_values| ()).unwrap();
    // A failed capture leaves nothing behind.
    let failed = stream.capture(|_stream| Err(DeviceError::Order { what: "on order" }));
    assert!(matches!(
        failed,
        Err(DeviceError::Order { what: "on order" })
    ));
    assert_eq!((device.state().graphs, stream.is_capturing()), (0, false));
}

#[test]
fn memory_of_another_device_is_refused() {
    let ((memory, _device), (other, _other_device)) = (fake((8, 0), None), fake((8, 0), None));
    let mut stream = Stream::new(&memory).unwrap();
    let buffer = Buffer::<u8>::zeroed(&other, "buffer", 16).unwrap();
    let error = stream.write(&buffer, &[0; 16]).unwrap_err();
    assert!(matches!(error, DeviceError::Order { .. }));
    let graph = Stream::new(&other)
        .unwrap()
        .capture(|_stream| Ok::<_, DeviceError>(()));
    assert!(stream.launch_graph(&graph.unwrap()).is_err());
}
