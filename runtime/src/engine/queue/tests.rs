use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::super::slot::{SlotSizes, State};
use super::*;

const LONG: Duration = Duration::from_secs(20);

fn slot(id: u64) -> Box<Slot> {
    let mut slot = Slot::new(SlotSizes::default()).unwrap();
    slot.id = id;
    slot
}

/// One submitter's side: its lane, and the mailbox where answers come.
fn lane(queue: &Queue, slots: usize, is_limited: bool) -> (Arc<Lane>, Arc<Mailbox>) {
    let mailbox = Arc::new(Mailbox::new(slots, None).unwrap());
    let lane = Arc::new(Lane::new(slots, &mailbox, is_limited).unwrap());
    queue.open(&lane).unwrap();
    (lane, mailbox)
}

fn ids(mailbox: &Mailbox) -> Vec<u64> {
    let mut taken = VecDeque::new();
    mailbox.try_take(&mut taken);
    taken.iter().map(|slot| slot.id).collect()
}

#[test]
fn a_ring_keeps_the_order_and_takes_as_many_as_it_has_cells() {
    for slots in [1, 2, 3, 8] {
        let ring = Ring::new(slots).unwrap();
        let cells = slots.next_power_of_two();
        for round in 0..5 {
            let first = round * 100;
            for id in first..first + cells as u64 {
                ring.push(slot(id)).unwrap();
            }
            assert_eq!(ring.push(slot(7)).unwrap_err().id, 7, "past the limit");
            assert_eq!(ring.len(), cells);
            for id in first..first + cells as u64 {
                assert_eq!(ring.pop().unwrap().id, id);
            }
            assert!(ring.pop().is_none());
        }
    }
}

#[test]
fn a_ring_hands_over_between_threads_what_was_put_in_and_nothing_twice() {
    const SLOTS: u64 = 20_000;
    let ring = Ring::new(5).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for id in 0..SLOTS {
                let mut refused = ring.push(slot(id));
                while let Err(slot) = refused {
                    thread::yield_now();
                    refused = ring.push(slot);
                }
            }
        });
        let mut next = 0;
        while next < SLOTS {
            match ring.pop() {
                Some(slot) => {
                    assert_eq!(slot.id, next);
                    next += 1;
                }
                None => thread::yield_now(),
            }
        }
        assert!(ring.pop().is_none());
    });
}

#[test]
fn the_limit_is_that_of_all_limited_lanes_and_no_other() {
    let queue = Queue::new(3, 0);
    let (one, _one_mailbox) = lane(&queue, 3, true);
    let (two, _two_mailbox) = lane(&queue, 3, true);
    let (free, _free_mailbox) = lane(&queue, 3, false);
    queue.put(&one, slot(1)).unwrap();
    queue.put(&two, slot(2)).unwrap();
    assert!(!queue.is_full());
    queue.put(&one, slot(3)).unwrap();
    assert!(queue.is_full(), "at the limit");
    assert_eq!(queue.put(&two, slot(4)).unwrap_err().id, 4, "past it");
    queue.put(&free, slot(5)).unwrap();
    assert_eq!(queue.depth(), 4);
    let mut taker = Taker::new(0);
    let first = taker.take(&queue).unwrap();
    assert_eq!(first.slot().unwrap().id, 1);
    queue.put(&two, slot(6)).unwrap();
    assert!(queue.put(&two, slot(7)).is_err());
}

#[test]
fn every_lane_gets_its_turn() {
    let queue = Queue::new(100, 0);
    let (one, _one_mailbox) = lane(&queue, 10, true);
    let (two, _two_mailbox) = lane(&queue, 10, true);
    for id in 0..10 {
        queue.put(&one, slot(id)).unwrap();
    }
    let mut taker = Taker::new(0);
    let mut next = || taker.take(&queue).map(|ticket| ticket.slot().unwrap().id);
    assert_eq!((next(), next()), (Some(0), Some(1)), "no other is there");
    for id in 100..103 {
        queue.put(&two, slot(id)).unwrap();
    }
    let found: Vec<u64> = std::iter::from_fn(next).collect();
    assert_eq!(found, [100, 2, 101, 3, 102, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn slots_alike_come_from_lanes_that_are_alike() {
    let queue = Queue::new(100, 0);
    let lanes = [true, false, true].map(|is_limited| lane(&queue, 10, is_limited));
    for id in 0..2 {
        for (number, (lane, _)) in lanes.iter().enumerate() {
            queue.put(lane, slot(10 * number as u64 + id)).unwrap();
        }
    }
    let mut taker = Taker::new(0);
    let id = |ticket: Option<Ticket>| ticket.map(|ticket| ticket.slot().unwrap().id);
    assert_eq!(id(taker.take(&queue)), Some(0));
    let found: Vec<u64> = std::iter::from_fn(|| id(taker.take_alike(&queue))).collect();
    assert_eq!(found, [20, 1, 21]);
    assert!(taker.has_waiting(&queue));
    assert_eq!(id(taker.take(&queue)), Some(10));
    assert_eq!(id(taker.take_alike(&queue)), Some(11));
    assert!(!taker.has_waiting(&queue));
}

#[test]
fn a_lane_that_somebody_takes_from_is_passed_by_and_delays_nobody() {
    let queue = Queue::new(100, 0);
    let (one, one_mailbox) = lane(&queue, 10, true);
    let (two, _two_mailbox) = lane(&queue, 10, true);
    // A worker that the system does not let run, in the middle of taking, and another one looking at the list of lanes.
    let taking = one.taking.lock().unwrap();
    queue.put(&one, slot(1)).unwrap();
    queue.put(&two, slot(2)).unwrap();
    let mut taker = Taker::new(0);
    assert_eq!(taker.take(&queue).unwrap().slot().unwrap().id, 2);
    assert!(taker.take(&queue).is_none());
    assert!(!taker.has_waiting(&queue));
    let lanes = queue.lanes.lock().unwrap();
    queue.put(&one, slot(3)).unwrap();
    one_mailbox.close();
    queue.close(&one);
    assert!(queue.lanes(Instant::now()).is_none(), "it does not wait");
    drop(lanes);
    drop(taking);
    assert_eq!(one.ring.len(), 2);
    // What was left is the workers' now, and goes with the lane.
    for _ in 0..2 {
        assert!(!taker.take(&queue).unwrap().is_wanted());
    }
    assert_eq!(queue.waiting.load(SeqCst), 0);
    queue.version.fetch_add(1, SeqCst);
    assert!(taker.take(&queue).is_none());
    assert_eq!(queue.lanes.lock().unwrap().len(), 1);
}

#[test]
fn a_lane_goes_with_its_submitter() {
    let queue = Queue::new(100, 0);
    let (one, mailbox) = lane(&queue, 10, true);
    queue.put(&one, slot(1)).unwrap();
    mailbox.close();
    queue.close(&one);
    assert_eq!((queue.depth(), queue.waiting.load(SeqCst)), (0, 0));
    assert!(queue.lanes.lock().unwrap().is_empty());
    assert_eq!(Arc::strong_count(&one), 1);
}

#[test]
fn there_are_as_many_lanes_as_the_limit_says() {
    let queue = Queue::new(1, 0);
    let mut lanes: Vec<_> = (0..SUBMITTERS_MAX).map(|_| lane(&queue, 1, true)).collect();
    let (_, mailbox) = &lanes[0];
    let one_more = Arc::new(Lane::new(1, mailbox, true).unwrap());
    let refused = queue.open(&one_more).unwrap_err().to_string();
    assert_eq!(refused, "submitters: expected 0 to 1024, found 1025");
    let (gone, mailbox) = lanes.pop().unwrap();
    mailbox.close();
    queue.close(&gone);
    queue.open(&one_more).unwrap();
}

#[test]
fn what_nobody_will_run_goes_home_as_abandoned() {
    let queue = Queue::new(100, 0);
    let (one, mailbox) = lane(&queue, 4, true);
    let (two, other) = lane(&queue, 4, false);
    queue.put(&one, slot(1)).unwrap();
    queue.put(&one, slot(2)).unwrap();
    queue.put(&two, slot(3)).unwrap();
    let lanes = queue.lanes(Instant::now()).unwrap();
    assert_eq!(
        lanes.iter().map(|lane| queue.abandon(lane)).sum::<usize>(),
        3
    );
    let mut taken = VecDeque::new();
    mailbox.try_take(&mut taken);
    assert!(
        taken
            .iter()
            .all(|slot| matches!(slot.state, State::Abandoned))
    );
    assert_eq!((taken.len(), ids(&other)), (2, vec![3]));
    assert_eq!(queue.waiting.load(SeqCst), 0);
}

/// Takes and answers what comes, and sleeps when nothing does, as a worker does; `wait` is how long it waits for more once it has
/// something.
fn take_until(queue: &Queue, number: usize, wait: Duration, stop: &AtomicBool, sleeps: &AtomicU64) {
    CHANCE.set(number as u64 + 1);
    let mut taker = Taker::new(number);
    taker.begin(queue);
    let is_stopped = || stop.load(SeqCst);
    while !is_stopped() {
        if let Some(first) = taker.take(queue) {
            let until = Instant::now() + wait;
            let mut batch = vec![first];
            while batch.len() < 3 {
                match taker.take(queue) {
                    Some(next) => batch.push(next),
                    None if !wait.is_zero() && Instant::now() < until => {
                        taker.sleep(queue, Some(until), is_stopped);
                    }
                    None => break,
                }
            }
            taker.pass_on(queue);
        } else {
            sleeps.fetch_add(1, SeqCst);
            taker.sleep(queue, None, is_stopped);
        }
    }
}

thread_local! {
    /// Numbers by chance for this thread; 0 where threads are not to be disturbed.
    static CHANCE: Cell<u64> = const { Cell::new(0) };
}

/// Stops this thread for a moment by chance, where it asked for that: the places in which a wake-up could be lost are a few
/// instructions long.
pub(super) fn meanwhile() {
    let mut chance = CHANCE.get();
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    CHANCE.set(chance);
    if chance % 8 == 1 {
        let spins = (chance >> 8) % 4_000;
        (0..spins).for_each(|_| std::hint::spin_loop());
    } else if chance % 8 == 2 {
        thread::yield_now();
    }
}

#[test]
fn what_a_worker_leaves_behind_wakes_another() {
    let queue = Queue::new(100, 1);
    let (one, _mailbox) = lane(&queue, 8, true);
    let is_awake = AtomicBool::new(false);
    thread::scope(|scope| {
        let taking = one.taking.lock().unwrap();
        queue.put(&one, slot(1)).unwrap();
        queue.put(&one, slot(2)).unwrap();
        scope.spawn(|| {
            let mut taker = Taker::new(0);
            taker.begin(&queue);
            // Somebody else is taking from the lane: nothing to do here.
            taker.sleep(&queue, None, || false);
            is_awake.store(true, SeqCst);
        });
        let mut other = Taker::new(1);
        while !queue.sleepers[0].is_asleep.load(SeqCst) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!is_awake.load(SeqCst));
        drop(taking);
        let _taken = other.take(&queue).unwrap();
        other.pass_on(&queue);
        let end = Instant::now() + LONG;
        while !is_awake.load(SeqCst) && Instant::now() < end {
            thread::yield_now();
        }
        let was_woken = is_awake.load(SeqCst);
        queue.sleepers[0].thread.get().unwrap().unpark();
        assert!(was_woken);
    });
}

#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u64 = 200;
    for (submitters, workers, wait) in [
        (1, 1, Duration::ZERO),
        (1, 4, Duration::ZERO),
        (2, 2, Duration::ZERO),
        (2, 3, Duration::from_micros(30)),
    ] {
        let queue = Queue::new(100, workers);
        let (stop, sleeps) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for number in 0..workers {
                let (queue, stop, sleeps) = (&queue, &stop, &sleeps);
                scope.spawn(move || take_until(queue, number, wait, stop, sleeps));
            }
            let submitters: Vec<_> = (0..submitters)
                .map(|submitter| {
                    let queue = &queue;
                    scope.spawn(move || {
                        CHANCE.set(submitter + 100);
                        let (lane, mailbox) = lane(queue, 8, true);
                        let mut taken = VecDeque::new();
                        for round in 0..ROUNDS {
                            // Nothing more comes before the answers do: a worker that oversleeps is never woken by the next.
                            let flows = (round + submitter) % 4 + 1;
                            for id in 0..flows {
                                queue.put(&lane, slot(id)).unwrap();
                            }
                            let mut answers = 0;
                            while answers < flows {
                                mailbox.wait(&mut taken, LONG);
                                assert!(!taken.is_empty(), "a worker sleeps over work");
                                answers += taken.drain(..).len() as u64;
                            }
                        }
                    })
                })
                .collect();
            let ended: Vec<_> = submitters.into_iter().map(|thread| thread.join()).collect();
            stop.store(true, SeqCst);
            queue.wake_all();
            ended.into_iter().for_each(|ended| ended.unwrap());
        });
        assert!(sleeps.load(SeqCst) > ROUNDS / 10, "workers do sleep");
    }
}
