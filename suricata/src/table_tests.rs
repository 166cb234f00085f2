//! A place has one owner at a time, whatever the order of events.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::HashSet;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use super::*;
use crate::verdict::{Names, State};

fn recorder(number: usize) -> Recorder {
    Recorder::of(number).unwrap()
}

fn verdict(state: State, packets: u32) -> FlowVerdict {
    FlowVerdict {
        names: Arc::new(Names::example(&[])),
        state,
        packets,
        generation: 1,
        latency_us: 0,
        judgements: Vec::new(),
        heads: Vec::new(),
    }
}

fn begun(table: &Table) -> u32 {
    let number = table.take().unwrap();
    table.begin(number, About::default(), recorder(1), 0);
    number
}

#[test]
fn there_are_as_many_places_as_were_asked_for() {
    let table = Table::new(3, 3);
    let places: HashSet<u32> = (0..3).map(|_| begun(&table)).collect();
    assert_eq!(places.len(), 3);
    assert_eq!(table.take(), None);
    assert_eq!(table.flows(), 3);
    assert_eq!(table.end(1), Left::Free);
    assert_eq!(table.free(1), Freed::default());
    assert_eq!((table.take(), table.take()), (Some(1), None));
}

#[test]
fn blocks_are_crossed() {
    let flows = TABLE_BLOCK as u32 + 1;
    let table = Table::new(flows, 0);
    for expected in 0..flows {
        assert_eq!(begun(&table), expected);
    }
    assert_eq!(table.take(), None);
    assert!(table.place(flows - 1).unwrap().is_alive());
    assert!(table.place(2 * TABLE_BLOCK as u32).is_none());
}

#[test]
fn a_place_waits_for_the_answers_to_its_flow() {
    let table = Table::new(2, 2);
    let number = begun(&table);
    let place = table.place(number).unwrap();
    assert!(place.expect_answer() && place.expect_answer());
    assert_eq!(table.end(number), Left::Kept);
    assert!(
        !place.expect_answer(),
        "a flow that has ended is not judged"
    );
    assert_eq!(table.answered(number, false), Left::Kept);
    assert_eq!(table.answered(number, false), Left::Free);
    assert_eq!(
        table.answered(number, false),
        Left::Kept,
        "nobody frees it twice"
    );
}

#[test]
fn an_answer_to_a_live_flow_frees_nothing() {
    let table = Table::new(2, 2);
    let number = begun(&table);
    assert!(table.place(number).unwrap().expect_answer());
    assert_eq!(table.answered(number, true), Left::Kept);
    assert_eq!(table.take_late(), None);
    assert_eq!(table.end(number), Left::Free);
}

#[test]
fn a_late_answer_is_written_before_its_place_is_free() {
    let table = Table::new(2, 2);
    let number = begun(&table);
    let place = table.place(number).unwrap();
    assert!(place.expect_answer() && place.expect_answer());
    assert_eq!(table.end(number), Left::Kept);
    assert_eq!(table.answered(number, true), Left::Kept);
    assert_eq!(table.take_late(), None, "another answer is under way");
    assert_eq!(table.answered(number, true), Left::Kept);
    assert_eq!(table.take_late(), Some(number));
    assert_eq!(table.take_late(), None);
    assert_eq!(table.written(number), Left::Free);
    assert_eq!(table.written(number), Left::Kept);
}

#[test]
fn recorders_stay_with_some_free_places() {
    let table = Table::new(3, 1);
    let (first, second) = (begun(&table), begun(&table));
    for number in [first, second] {
        assert_eq!(table.end(number), Left::Free);
    }
    assert_eq!(table.free(first).surplus, None);
    assert_eq!(table.free(second).surplus, Some(recorder(1)));
    assert_eq!(table.place(first).unwrap().recorder(), Some(recorder(1)));
    assert_eq!(table.place(second).unwrap().recorder(), None);
}

#[test]
fn a_letter_keeps_the_newest_answer() {
    let mut letter = Letter::default();
    letter.put(verdict(State::Done, 20));
    letter.put(verdict(State::Done, 8));
    assert_eq!(letter.verdict.as_ref().unwrap().packets, 20);
    letter.verdict = None;
    letter.put(verdict(State::Done, 8));
    assert!(letter.verdict.is_none(), "what was taken was newer");
}

#[test]
fn nobody_waits_for_a_letter() {
    let place = Place::default();
    assert!(place.take_verdict().is_none());
    let held = place.letter.lock().unwrap();
    // Who brings an answer has it back, and who looks for one finds none.
    let verdict = place.put(verdict(State::Done, 8)).unwrap_err();
    assert!(place.take_verdict().is_none());
    drop(held);
    place.put(verdict).unwrap();
    let held = place.letter.lock().unwrap();
    assert!(place.take_verdict().is_none());
    drop(held);
    assert_eq!(place.take_verdict().unwrap().packets, 8);
    assert!(place.take_verdict().is_none());
}

#[test]
fn a_letter_is_read_on_after_a_panic() {
    let place = Place::default();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _held = place.letter.lock().unwrap();
        panic!("with the letter in hand");
    }));
    assert!(result.is_err() && place.letter.is_poisoned());
    place.put(verdict(State::Done, 8)).unwrap();
    assert_eq!(place.open().verdict.as_ref().unwrap().packets, 8);
    assert_eq!(place.take_verdict().unwrap().packets, 8);
}

#[test]
fn a_letter_of_the_flow_before_is_gone() {
    let table = Table::new(1, 1);
    let number = begun(&table);
    let place = table.place(number).unwrap();
    place.put(verdict(State::Done, 8)).unwrap();
    assert_eq!(table.end(number), Left::Free);
    assert!(table.free(number).has_letter);
    assert_eq!(begun(&table), number);
    assert!(place.take_verdict().is_none());
}

#[test]
fn a_failure_takes_the_place_of_no_verdict() {
    for failure in [State::Failed, State::Expired, State::Abandoned] {
        for good in [State::Done, State::NotApplicable] {
            let mut letter = Letter::default();
            letter.put(verdict(good, 8));
            letter.put(verdict(failure, 20));
            let kept = letter.verdict.take().unwrap();
            assert_eq!((kept.state, kept.packets), (good, 8));
            letter.put(verdict(failure, 20));
            assert!(letter.verdict.is_none(), "a verdict was taken before");
            letter.put(verdict(good, 20));
            assert_eq!(letter.verdict.unwrap().packets, 20);
        }
        let mut letter = Letter::default();
        letter.put(verdict(failure, 20));
        assert_eq!(letter.verdict.as_ref().unwrap().state, failure);
        letter.put(verdict(State::Done, 8));
        let kept = letter.verdict.unwrap();
        assert_eq!((kept.state, kept.packets), (State::Done, 8), "{failure:?}");
    }
}

#[test]
fn what_is_offered_is_of_the_flow_that_lives_there() {
    let table = Table::new(1, 1);
    let number = begun(&table);
    let place = table.place(number).unwrap();
    assert_eq!(
        table.news(number, true),
        News::None(Left::Kept),
        "no packet yet"
    );
    assert_eq!(place.pending(), 0);
    place.packets.store(9, Ordering::Release);
    let News::Some { recorder, packets } = table.news(number, true) else {
        panic!("nine packets are news");
    };
    assert_eq!((recorder.number(), packets, place.pending()), (1, 9, 2));
    place.offered.store(9, Ordering::Release);
    assert_eq!(
        table.news(number, true),
        News::None(Left::Kept),
        "all offered"
    );
    assert_eq!(place.pending(), 2);
    // While it is held, its number is nobody else's.
    assert_eq!(table.end(number), Left::Kept);
    assert_eq!(
        (table.take(), table.news(number, true)),
        (None, News::NoFlow)
    );
    assert_eq!(table.answered(number, false), Left::Kept);
    assert_eq!(table.take(), None, "who asked has it still");
    assert_eq!(table.answered(number, false), Left::Free);
    let _ = table.free(number);
    // Another flow of the same number has packets of its own.
    assert_eq!(begun(&table), number);
    assert_eq!(table.news(number, true), News::None(Left::Kept));
    place.packets.store(2, Ordering::Release);
    assert!(matches!(
        table.news(number, true),
        News::Some { packets: 2, .. }
    ));
    assert_eq!(table.news(7, true), News::NoFlow);
}

#[test]
fn nothing_is_offered_of_a_flow_without_a_recorder() {
    let table = Table::new(1, 1);
    let number = begun(&table);
    table
        .place(number)
        .unwrap()
        .packets
        .store(3, Ordering::Release);
    assert!(table.take_recorder(number).is_some());
    assert_eq!(table.news(number, true), News::None(Left::Kept));
    assert_eq!(table.end(number), Left::Free);
}

#[test]
fn an_answer_that_nobody_took_is_told_once() {
    let table = Table::new(1, 1);
    for (has_answer, is_taken) in [(true, false), (true, true), (false, false)] {
        let number = begun(&table);
        let place = table.place(number).unwrap();
        if has_answer {
            place.letter.lock().unwrap().put(verdict(State::Done, 3));
        }
        if is_taken {
            place.letter.lock().unwrap().verdict = None;
        }
        assert_eq!(table.end(number), Left::Free);
        assert_eq!(table.free(number).has_letter, has_answer && !is_taken);
        assert!(place.letter.lock().unwrap().verdict.is_none());
    }
}

/// Threads begin and end flows, others answer: no place has two owners, and all are free in the end.
#[test]
fn threads_share_the_table() {
    const FLOWS: u32 = 64;
    const ROUNDS: u32 = 20_000;
    let table = Table::new(FLOWS, FLOWS);
    let owners: Vec<AtomicU32> = (0..FLOWS).map(|_| AtomicU32::new(0)).collect();
    let under_way: Mutex<Vec<u32>> = Mutex::default();
    let left = AtomicU32::new(2);
    let release = |number: u32| {
        assert_eq!(owners[number as usize].swap(0, Ordering::SeqCst), 1);
        let _ = table.free(number);
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let Some(number) = table.take() else {
                        std::thread::yield_now();
                        continue;
                    };
                    assert_eq!(owners[number as usize].swap(1, Ordering::SeqCst), 0);
                    table.begin(number, About::default(), recorder(7), 0);
                    if round.is_multiple_of(3) && table.place(number).unwrap().expect_answer() {
                        under_way.lock().unwrap().push(number);
                    }
                    if table.end(number) == Left::Free {
                        release(number);
                    }
                }
                left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        scope.spawn(|| {
            loop {
                let is_over = left.load(Ordering::SeqCst) == 0;
                let answered = std::mem::take(&mut *under_way.lock().unwrap());
                for number in answered {
                    if table.answered(number, number.is_multiple_of(2)) == Left::Free {
                        release(number);
                    }
                }
                while let Some(number) = table.take_late() {
                    if table.written(number) == Left::Free {
                        release(number);
                    }
                }
                if is_over && under_way.lock().unwrap().is_empty() {
                    break;
                }
                std::thread::yield_now();
            }
        });
    });
    assert_eq!(table.flows(), 0);
    let all: HashSet<u32> = std::iter::from_fn(|| table.take()).collect();
    assert_eq!(all.len() as u32, FLOWS);
}
