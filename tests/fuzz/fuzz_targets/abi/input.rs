//! The input as numbers, and structs made of it.

use std::ptr::null;

use trafficllm_ffi::*;

use crate::ROOM;

/// The input, as numbers.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Mostly the size of a struct, sometimes another one.
    pub(crate) fn size(&mut self, right: usize) -> usize {
        match self.byte() {
            0 => 0,
            1 => right - 1,
            2 => right + 8,
            3 => ROOM,
            4 => ROOM + 1,
            5 => usize::MAX,
            _ => right,
        }
    }

    /// The size of a text's buffer.
    pub(crate) fn text_size(&mut self) -> usize {
        match self.byte() {
            0 => 0,
            small @ 1..=60 => usize::from(small),
            _ => ROOM,
        }
    }
}

/// A tllm_flow_info, mostly right, with room behind it.
pub(crate) fn flow_info(input: &mut Input<'_>) -> [u64; ROOM / 8 + 1] {
    let mut room = [0_u64; ROOM / 8 + 1];
    let info: *mut tllm_flow_info = room.as_mut_ptr().cast();
    let size = input.size(size_of::<tllm_flow_info>());
    // SAFETY: there is room for the struct, which is plain data.
    unsafe {
        tllm_flow_info_init(info, size_of::<tllm_flow_info>());
        (*info).struct_size = u32::try_from(size).unwrap_or(u32::MAX);
        (*info).protocol = input.pick(&[6, 17, 1, 200]);
        (*info).ip_version = input.pick(&[0, 4, 6, 4, 6, 5]);
        (*info).reserved0 = u16::from(input.byte() == 1);
    }
    room
}

/// A tllm_packet, mostly right, with room behind it.
pub(crate) fn packet(input: &mut Input<'_>, payload: &[u8]) -> [u64; ROOM / 8 + 1] {
    let mut room = [0_u64; ROOM / 8 + 1];
    let packet: *mut tllm_packet = room.as_mut_ptr().cast();
    let size = input.size(size_of::<tllm_packet>());
    let length = input.pick(&[0, 1, 40, 600]);
    // SAFETY: there is room for the struct, which is plain data.
    unsafe {
        tllm_packet_init(packet, size_of::<tllm_packet>());
        (*packet).struct_size = u32::try_from(size).unwrap_or(u32::MAX);
        (*packet).direction = input.pick(&[0, 1, 0, 1, 0, 1, 2]);
        (*packet).time_ns = u64::from(input.byte()) << input.below(57);
        (*packet).ip_bytes = u32::MAX >> input.below(32);
        (*packet).payload_bytes = length as u32 + u32::from(input.byte());
        (*packet).payload_size = if input.byte() == 1 {
            usize::MAX
        } else {
            length
        };
        (*packet).payload = if input.byte() == 1 {
            null()
        } else {
            payload.as_ptr()
        };
        (*packet).tcp_flags = input.byte();
        (*packet).reserved[1] = u64::from(input.byte() == 1);
    }
    room
}
