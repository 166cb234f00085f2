//! What happens with a packet, and with the end of a flow.
//!
//! A flow is judged up to three times, each time by all of its packets so far, up to those that the model looks at:
//!
//! 1. at `packets` packets, so that rules can match while it lives;
//! 2. when it is whole: it has as many packets as the model looks at, or rests (`idle`);
//! 3. at its end, if packets came after that. Reading files, its record waits for this; live, the verdict comes late.
//!
//! The last one is what `trafficllm detect` says of the same packets.

use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::config::Overload;
use crate::host::packet::{Endpoint, Unreadable, View};
use crate::host::symbols::{Flow, Packet, ThreadVars};
use crate::library::abi::{self, status};
use crate::limits;
use crate::plugin::{self, Plugin, Refusal};
use crate::session::{Lanes, Submitted};
use crate::table::{About, Left, Place};
use crate::verdict::FlowVerdict;

/// How long a wait sleeps at once while another thread has the session.
const NAP: Duration = Duration::from_micros(100);

/// What hangs in a flow of Suricata's. Touched under the flow's lock only.
#[derive(Debug)]
pub struct Followed {
    /// Its place in the table; `None` if it is not followed.
    place: Option<u32>,
    protocol: u8,
    initiator: Endpoint,
    /// Packets fed.
    packets: u32,
    /// Whether the first judgement was asked for.
    is_early_asked: bool,
    /// Whether the recorder keeps no more packets.
    is_full: bool,
    /// Whether the judgement of the full record was asked for.
    is_full_asked: bool,
    /// The newest verdict.
    verdict: Option<FlowVerdict>,
    /// Whether it found the queue full.
    is_shed: bool,
    /// Whether its recorder was given back: nothing more can come of it.
    is_over: bool,
}

impl Followed {
    const UNTRACKED: Self = Self {
        place: None,
        protocol: 0,
        initiator: Endpoint {
            address: [0; 16],
            port: 0,
        },
        packets: 0,
        is_early_asked: false,
        is_full: false,
        is_full_asked: false,
        verdict: None,
        is_shed: false,
        is_over: true,
    };

    /// The newest verdict.
    #[must_use]
    pub fn verdict(&self) -> Option<&FlowVerdict> {
        self.verdict.as_ref()
    }

    /// Whether the newest verdict is one on all packets that the model looks at, as far as the flow has come.
    #[must_use]
    pub fn is_final(&self) -> bool {
        let newest = self.verdict.as_ref();
        newest.is_some_and(|verdict| verdict.packets >= self.packets)
    }

    /// Whether it has a place in the table.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.place.is_some()
    }

    /// Packets that there is a verdict on. An answer without one is not counted: an older one that has a verdict may still come.
    fn judged_packets(&self) -> u32 {
        let judged = self.verdict.as_ref();
        let judged = judged.filter(|verdict| verdict.state.is_judged());
        judged.map_or(0, |verdict| verdict.packets)
    }

    /// Takes a verdict that has come.
    fn take_letter(&mut self, place: &Place) {
        if let Some(verdict) = place.take_verdict() {
            self.verdict = Some(verdict);
        }
    }
}

/// What hangs in a flow; `None` where nothing does.
///
/// # Safety
/// The calling thread holds the flow's lock, and nobody else has the reference that this gave before.
pub unsafe fn followed<'a>(plugin: &Plugin, flow: *mut Flow) -> Option<&'a mut Followed> {
    // SAFETY: the caller holds the lock.
    let stored = unsafe { plugin.host.stored(flow) };
    // SAFETY: it is NULL or a `Followed` of `begin`, which lives until `on_free`; the lock keeps others out.
    unsafe { stored.cast::<Followed>().as_mut() }
}

/// Suricata has a packet of a flow.
///
/// # Safety
/// Suricata calls it, with a live packet and its flow, whose lock the calling thread holds.
pub unsafe extern "C" fn on_packet(
    _thread: *mut ThreadVars,
    flow: *mut Flow,
    packet: *mut Packet,
    _data: *mut c_void,
) {
    let Some(plugin) = plugin::get() else { return };
    // SAFETY: Suricata gives a live packet and its flow, whose lock this thread holds until the callback returns.
    crate::guarded((), || unsafe { receive(plugin, flow, packet) });
}

/// # Safety
/// A live packet of a live flow whose lock this thread holds.
unsafe fn receive(plugin: &Plugin, flow: *mut Flow, packet: *const Packet) {
    // SAFETY: as the caller says.
    let known = unsafe { followed(plugin, flow) };
    if let Some(followed) = &known
        && (followed.is_over || followed.is_full)
    {
        // Nothing of the packet is looked at.
        let followed = known.filter(|followed| !followed.is_over);
        let place = followed
            .as_ref()
            .and_then(|followed| plugin.table.place(followed.place?));
        look_for_answers(plugin, place);
        if let (Some(followed), Some(place)) = (followed, place) {
            attend(plugin, followed, place);
        }
        return;
    }
    // SAFETY: as the caller says.
    let view = match unsafe { View::of(packet, flow) } {
        Ok(view) => {
            plugin.layout_is_right();
            view
        }
        Err(Unreadable::Headers) => return,
        Err(Unreadable::Layout) => return plugin.layout_looks_wrong(),
    };
    let followed = match known {
        Some(followed) => followed,
        None => {
            let begun = Box::into_raw(Box::new(begin(plugin, &view)));
            // SAFETY: the storage's free function takes what `Box::into_raw` gave.
            if !unsafe { plugin.host.set_stored(flow, begun.cast()) } {
                // SAFETY: nobody else has it.
                drop_followed(plugin, *unsafe { Box::from_raw(begun) });
                return;
            }
            // SAFETY: it was just made, and the lock keeps others out.
            unsafe { &mut *begun }
        }
    };
    let place = followed.place.and_then(|number| plugin.table.place(number));
    look_for_answers(plugin, place);
    if let Some(place) = place {
        add(plugin, followed, place, &view);
    }
}

/// Takes the answers that have come to this thread's flows, now and then; `place` is that of the flow whose packet it is.
fn look_for_answers(plugin: &Plugin, place: Option<&Place>) {
    Lanes::own_if_any(|lane| {
        let is_awaited = place.is_some_and(|place| place.pending() > 0);
        if lane.is_due(is_awaited, plugin.now_ms()) {
            plugin.take_answers(lane, 0);
        }
    });
}

fn begin(plugin: &Plugin, view: &View<'_>) -> Followed {
    plugin.counters.flows.add(1);
    // Before its first flow: flows may take what the budget leaves.
    plugin.lanes.own(&plugin.engine, |_| ());
    let untracked = || {
        plugin.counters.untracked.add(1);
        Followed::UNTRACKED
    };
    if plugin.is_paused.load(Ordering::Relaxed) {
        return untracked();
    }
    let Some(number) = plugin.table.take() else {
        return untracked();
    };
    let mut info = plugin.library.flow_info();
    info.protocol = view.protocol;
    info.ip_version = view.ip_version;
    info.initiator = view.source.address;
    info.responder = view.destination.address;
    info.initiator_port = view.source.port;
    info.responder_port = view.destination.port;
    let spare = plugin.table.place(number).and_then(Place::recorder);
    let reset = spare.filter(|&spare| plugin.library.reset(spare, &info) == status::OK);
    let recorder = reset.or_else(|| {
        if let Some(unusable) = plugin.table.take_recorder(number) {
            plugin.library.free(unusable);
        }
        plugin.engine.new_flow(&info).ok()
    });
    let Some(recorder) = recorder else {
        plugin.table.give_back(number);
        return untracked();
    };
    let about = About {
        flow_id: flow_id(view),
        ip_version: view.ip_version,
        protocol: view.protocol,
        initiator: view.source,
        responder: view.destination,
    };
    plugin.table.begin(number, about, recorder, plugin.now_ms());
    Followed {
        place: Some(number),
        protocol: view.protocol,
        initiator: view.source,
        packets: 0,
        is_early_asked: plugin.config.packets == 0,
        is_full: false,
        is_full_asked: false,
        verdict: None,
        is_shed: false,
        is_over: false,
    }
}

/// Suricata's number of the flow that begins with this packet.
fn flow_id(view: &View<'_>) -> u64 {
    let seconds = (view.time.seconds & 0xffff) << 48;
    let microseconds = (view.time.microseconds & 0xffff) << 32;
    (seconds | microseconds | u64::from(view.flow_hash)) & FLOW_ID_MASK
}

const FLOW_ID_MASK: u64 = (1 << 51) - 1;

/// Adds a packet to its flow.
fn add(plugin: &Plugin, followed: &mut Followed, place: &Place, view: &View<'_>) {
    // An ICMP error belongs to the flow that it is about, but is none of its packets.
    if view.protocol != followed.protocol {
        return;
    }
    feed(plugin, followed, place, view);
    attend(plugin, followed, place);
}

/// Takes the verdict on a flow if it has come, and has the flow judged if it is time.
fn attend(plugin: &Plugin, followed: &mut Followed, place: &Place) {
    followed.take_letter(place);
    let is_asked = place.offered.load(Ordering::Acquire) >= followed.packets;
    if followed.is_full && is_asked {
        release(plugin, followed, place);
    } else if followed.is_full {
        // Where it is shed, the next packet is another occasion only if overload says so.
        if !followed.is_full_asked {
            followed.is_full_asked = ask(plugin, followed, place);
        }
    } else if !followed.is_early_asked && followed.packets >= plugin.config.packets {
        // After a rest it may have been asked already.
        followed.is_early_asked = is_asked || ask(plugin, followed, place);
    }
}

fn feed(plugin: &Plugin, followed: &mut Followed, place: &Place, view: &View<'_>) {
    let Some(recorder) = place.recorder() else {
        return;
    };
    let mut packet = plugin.packet();
    packet.direction = if view.source == followed.initiator {
        abi::FROM_INITIATOR
    } else {
        abi::FROM_RESPONDER
    };
    packet.tcp_flags = view.tcp_flags;
    packet.time_ns = view.time.nanoseconds();
    packet.ip_bytes = view.ip_bytes;
    packet.payload_bytes = view.payload_bytes;
    packet.payload = view.payload.as_ptr();
    packet.payload_size = view.payload.len();
    let mut fed = plugin.library.feed(recorder, &packet);
    for _ in 0..limits::FEED_ATTEMPTS {
        if fed != status::ERR_BUSY {
            break;
        }
        std::hint::spin_loop();
        fed = plugin.library.feed(recorder, &packet);
    }
    match fed {
        status::OK => {}
        status::FLOW_FULL => {
            followed.is_full = true;
            return;
        }
        failed => {
            if failed == status::ERR_PANIC
                && let Some(number) = followed.place
            {
                // It can only be freed.
                plugin.give_up_recorder(number);
            }
            return plugin.counters.packets_lost.add(1);
        }
    }
    followed.packets += 1;
    place.touched_ms.store(plugin.now_ms(), Ordering::Relaxed);
    place.packets.store(followed.packets, Ordering::Release);
}

/// Has a flow judged as far as it has come. Whether that is done with: else it is asked again with the next packet.
fn ask(plugin: &Plugin, followed: &mut Followed, place: &Place) -> bool {
    let Some(number) = followed.place else {
        return true;
    };
    match plugin.offer(number, Refusal::IsCounted) {
        Submitted::Queued => {
            if plugin.is_offline() && plugin.has_rules.load(Ordering::Relaxed) {
                wait(plugin, followed, place);
            }
            true
        }
        Submitted::Shed => {
            followed.is_shed = true;
            plugin.config.overload != Overload::Retry
        }
        Submitted::Busy => false,
        Submitted::NeedMore | Submitted::Nothing | Submitted::Failed(_) => true,
    }
}

/// Waits for the answer to all that was asked of a flow. Only where no traffic waits: captures that are read from files.
fn wait(plugin: &Plugin, followed: &mut Followed, place: &Place) {
    let deadline = Instant::now() + Duration::from_millis(plugin.config.offline_wait_ms);
    loop {
        followed.take_letter(place);
        let is_answered = place.pending() == 0;
        if is_answered || place.offered.load(Ordering::Acquire) <= followed.judged_packets() {
            followed.take_letter(place);
            return;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // Without a time nobody was to wait.
            let is_short = plugin.config.offline_wait_ms > 0;
            plugin.counters.waits_over.add(u64::from(is_short));
            return;
        }
        let wait_us = left.as_micros().min(1_000) as u64;
        let own = Lanes::own_if_any(|lane| lane.has_flows() && plugin.take_answers(lane, wait_us));
        if own != Some(true) {
            let others = plugin.lanes.all();
            let mut busy = others.iter().filter(|lane| lane.has_flows());
            if !busy.any(|lane| plugin.take_answers(lane, 0)) {
                std::thread::sleep(NAP);
            }
        }
    }
}

/// The record of a flow is being written: the last occasion for its verdict to stand in it.
pub fn at_record(plugin: &Plugin, followed: &mut Followed, flow_id: Option<u64>) {
    let Some(number) = followed.place else { return };
    let Some(place) = plugin.table.place(number) else {
        return;
    };
    if let (Some(flow_id), Some(mut letter)) = (flow_id, place.try_open()) {
        letter.about.flow_id = flow_id;
    }
    followed.take_letter(place);
    if plugin.is_offline() {
        judge_rest_waiting(plugin, followed, number, place);
    }
}

/// Whether packets came after the last judgement that was asked for.
fn has_rest(followed: &Followed, place: &Place) -> bool {
    !followed.is_over && place.offered.load(Ordering::Acquire) < followed.packets
}

/// Has what came after the last judgement judged where no traffic waits: again until there is room, and until the answer has come.
fn judge_rest_waiting(plugin: &Plugin, followed: &mut Followed, number: u32, place: &Place) {
    let deadline = Instant::now() + Duration::from_millis(plugin.config.offline_wait_ms);
    while has_rest(followed, place)
        && plugin
            .offer(number, Refusal::IsNotCounted)
            .is_to_be_repeated()
        && Instant::now() < deadline
    {
        for lane in plugin.lanes.all() {
            plugin.take_answers(&lane, 0);
        }
        std::thread::sleep(NAP);
    }
    wait(plugin, followed, place);
}

/// Has what came after the last judgement judged where it is the last occasion. Nobody waits: what finds every session taken is lost.
fn judge_rest_at_end(plugin: &Plugin, number: u32) {
    for _ in 0..limits::LAST_OFFERS {
        if plugin.offer(number, Refusal::IsCounted) != Submitted::Busy {
            return;
        }
        std::hint::spin_loop();
    }
    if plugin.offer_shared(number, Refusal::IsCounted) == Submitted::Busy {
        plugin.counters.errors.add(1);
    }
}

/// What a flow's record says instead of a verdict.
#[must_use]
pub fn word_of(plugin: &Plugin, followed: &Followed) -> &'static str {
    let Some(place) = followed.place.and_then(|number| plugin.table.place(number)) else {
        return "untracked";
    };
    if place.offered.load(Ordering::Acquire) > 0 {
        "pending"
    } else if followed.is_shed {
        "shed"
    } else {
        "unjudged"
    }
}

/// Gives the recorder of a flow back whose packets were all offered, once the answers have come.
fn release(plugin: &Plugin, followed: &mut Followed, place: &Place) {
    if followed.is_over || place.pending() > 0 {
        return;
    }
    followed.is_over = true;
    // No packet looks for it any more.
    followed.take_letter(place);
    let recorder = followed
        .place
        .and_then(|number| plugin.table.take_recorder(number));
    if let Some(recorder) = recorder {
        plugin.library.free(recorder);
    }
}

/// A flow of Suricata's has ended; its record was written before.
///
/// # Safety
/// Suricata calls it, once, with what [`on_packet`] has put into the flow.
pub unsafe extern "C" fn on_free(stored: *mut c_void) {
    let Some(plugin) = plugin::remains() else {
        return;
    };
    if stored.is_null() {
        return;
    }
    // SAFETY: Suricata gives back, once, what `receive` stored.
    let followed = unsafe { Box::from_raw(stored.cast::<Followed>()) };
    crate::guarded((), || drop_followed(plugin, *followed));
}

fn drop_followed(plugin: &Plugin, followed: Followed) {
    let Some(number) = followed.place else { return };
    let Some(place) = plugin.table.place(number) else {
        return;
    };
    let is_late_wanted = !plugin.config.late_file.is_empty() && plugin::get().is_some();
    if is_late_wanted && has_rest(&followed, place) {
        judge_rest_at_end(plugin, number);
    }
    if plugin.table.end(number) == Left::Free {
        // All answers have come; one that no record has is still in its letter.
        let has_letter = place.open().verdict.is_some();
        if has_letter && is_late_wanted {
            plugin.table.write(number);
        } else {
            plugin.free(number);
        }
    }
}

impl Plugin {
    fn layout_is_right(&self) {
        if self.layout_failures.load(Ordering::Relaxed) != u64::MAX {
            self.layout_failures.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// A packet whose pointers do not fit to each other. If no packet before looked right, Suricata is another than it seems.
    fn layout_looks_wrong(&self) {
        // In one step: another thread may just have seen a packet that looks right.
        let counted =
            self.layout_failures
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |failures| {
                    failures.checked_add(1)
                });
        if counted.is_ok_and(|before| before + 1 >= limits::LAYOUT_FAILURES_MAX) {
            plugin::halt("the headers of packets do not stand where this plugin knows them");
        }
    }
}
