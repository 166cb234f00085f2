//! The keywords `trafficllm.label` and `trafficllm.score`.
//!
//!     trafficllm.label:malware_traffic_detection,Zeus;     the task's verdict has that label, and does not abstain
//!     trafficllm.label:!malware_traffic_detection,benign;  it has another one, and does not abstain
//!     trafficllm.score:malware_traffic_detection,>=0.9;    its score, whether it abstains or not; also >, <, <= and 0.5-0.9

pub mod option;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use crate::collect;
use crate::host::packet;
use crate::host::symbols::{
    DetectEngineCtx, DetectEngineThreadCtx, KeywordRecord, MatchFn, Packet, SetupFn, SigMatchCtx,
    Signature,
};
use crate::host::{Host, Level, log};
use crate::plugin::{self, Plugin, is_usable};
use crate::verdict::{FlowVerdict, Names};
use option::{LabelOption, ScoreOption};

/// `DETECT_SM_LIST_MATCH`: matched with every packet.
const LIST_PACKET: c_int = 0;
/// `SIGMATCH_QUOTES_OPTIONAL`.
const QUOTES_OPTIONAL: u16 = 1 << 5;

/// Where in an entry of Suricata's keyword table things stand (`SigTableElmt`).
const ENTRY_MATCH: usize = 0;
const ENTRY_SETUP: usize = 48;
const ENTRY_FREE: usize = 72;
/// Bytes of an entry; a build with unit tests has a pointer more.
const ENTRY_BYTES: [usize; 2] = [128, 136];

const URL: &CStr = c"https://github.com/libtrafficllm/libtrafficllm";

static LABEL_KEYWORD: AtomicU16 = AtomicU16::new(0);
static SCORE_KEYWORD: AtomicU16 = AtomicU16::new(0);

/// What a rule asks.
#[derive(Debug)]
enum Question {
    Label(LabelOption),
    Score(ScoreOption),
}

impl Question {
    fn task(&self) -> &str {
        match self {
            Self::Label(asked) => &asked.task,
            Self::Score(asked) => &asked.task,
        }
    }
}

/// A keyword's option in a rule.
#[derive(Debug)]
struct Asked {
    question: Question,
    /// The numbers of task and label in the model whose names have the serial in the high half; found again for each model.
    numbers: AtomicU64,
}

/// A task that the model does not have, or a label.
const UNKNOWN: u16 = u16::MAX;

impl Asked {
    fn new(question: Question) -> Self {
        Self {
            question,
            numbers: AtomicU64::new(0),
        }
    }

    /// The numbers of task and label in a model.
    fn numbers_in(&self, names: &Names) -> (u16, u16) {
        let kept = self.numbers.load(Ordering::Relaxed);
        if (kept >> 32) as u32 == names.serial {
            return ((kept >> 16) as u16, kept as u16);
        }
        let (task, label) = match &self.question {
            Question::Label(asked) => (&asked.task, Some(&asked.label)),
            Question::Score(asked) => (&asked.task, None),
        };
        let task = names.task(task);
        let found = task.and_then(|task| names.tasks.get(usize::from(task)));
        let label = found.zip(label).and_then(|(task, label)| task.label(label));
        let (task, label) = (task.unwrap_or(UNKNOWN), label.unwrap_or(UNKNOWN));
        let numbers = u64::from(task) << 16 | u64::from(label);
        self.numbers
            .store(u64::from(names.serial) << 32 | numbers, Ordering::Relaxed);
        (task, label)
    }

    fn matches(&self, verdict: &FlowVerdict) -> bool {
        let (task, label) = self.numbers_in(&verdict.names);
        let Some(judgement) = verdict.on(task) else {
            return false;
        };
        match &self.question {
            Question::Label(asked) => {
                !judgement.is_abstained && (judgement.label == label) != asked.is_negated
            }
            Question::Score(asked) => asked.holds(judgement.score),
        }
    }
}

/// Registers both keywords.
///
/// # Errors
/// Why they cannot be: Suricata's table is not laid out as the plugin knows it.
pub fn register(host: &Host) -> Result<(), String> {
    let label = KeywordRecord {
        name: c"trafficllm.label".as_ptr(),
        description: c"match on the label that libtrafficllm gives a flow".as_ptr(),
        url: URL.as_ptr(),
        flags: QUOTES_OPTIONAL,
        setup: Some(set_up_label),
        free: Some(free),
        transaction_match: None,
    };
    let score = KeywordRecord {
        name: c"trafficllm.score".as_ptr(),
        description: c"match on the score that libtrafficllm gives a flow".as_ptr(),
        setup: Some(set_up_score),
        ..label
    };
    register_one(host, &label, set_up_label, &LABEL_KEYWORD)?;
    register_one(host, &score, set_up_score, &SCORE_KEYWORD)
}

fn register_one(
    host: &Host,
    record: &KeywordRecord,
    set_up: SetupFn,
    keyword: &AtomicU16,
) -> Result<(), String> {
    let symbols = host.symbols();
    // SAFETY: the record's texts are static; the table is Suricata's own, and it has one thread now.
    let number = unsafe { (symbols.keyword_register)(record) };
    if number == u16::MAX {
        return Err("Suricata has no room for the keywords".to_owned());
    }
    // SAFETY: the symbol is the variable that points to the table, which has an entry of this number now.
    let table = unsafe { *symbols.keyword_table };
    let place = ENTRY_BYTES.into_iter().find_map(|entry_bytes| {
        // SAFETY: with its own size the place is this keyword's entry. The smaller one is tried first, where it is within the table
        // in any case; the larger one only where that was not the keyword's, and so the table is one of larger entries.
        let entry = unsafe { table.add(usize::from(number) * entry_bytes) };
        // SAFETY: as above; pointers are aligned in the table.
        let (setup, freed) = unsafe {
            (
                entry.add(ENTRY_SETUP).cast::<usize>().read_unaligned(),
                entry.add(ENTRY_FREE).cast::<usize>().read_unaligned(),
            )
        };
        (setup == set_up as usize && freed == free as *const () as usize).then_some(entry)
    });
    let Some(entry) = place else {
        return Err(
            "Suricata's table of keywords is not laid out as this plugin knows it".to_owned(),
        );
    };
    let function: MatchFn = matches;
    // SAFETY: the entry is that of this keyword, as its functions show; the first field is the packet match function.
    unsafe {
        entry
            .add(ENTRY_MATCH)
            .cast::<MatchFn>()
            .write_unaligned(function)
    };
    keyword.store(number, Ordering::Relaxed);
    Ok(())
}

unsafe extern "C" fn set_up_label(
    rules: *mut DetectEngineCtx,
    rule: *mut Signature,
    option: *const c_char,
) -> c_int {
    let parse = |text: &str, names: &Names| LabelOption::parse(text, names).map(Question::Label);
    // SAFETY: Suricata gives live rules, a rule and a C text or NULL.
    unsafe { set_up(rules, rule, option, &LABEL_KEYWORD, "label", parse) }
}

unsafe extern "C" fn set_up_score(
    rules: *mut DetectEngineCtx,
    rule: *mut Signature,
    option: *const c_char,
) -> c_int {
    let parse = |text: &str, names: &Names| ScoreOption::parse(text, names).map(Question::Score);
    // SAFETY: as above.
    unsafe { set_up(rules, rule, option, &SCORE_KEYWORD, "score", parse) }
}

/// Says once why rules are refused: Suricata says it of each.
fn tell_refusal(name: &str) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if !IS_TOLD.swap(true, Ordering::Relaxed) {
        let reason = plugin::halt_reason();
        log(
            Level::Error,
            &format!(
                "trafficllm.{name}: the plugin is disabled ({reason}): no rule with its keywords can be loaded"
            ),
        );
    }
}

/// # Safety
/// Live rules, a rule of them, and a C text or NULL.
unsafe fn set_up(
    rules: *mut DetectEngineCtx,
    rule: *mut Signature,
    option: *const c_char,
    keyword: &AtomicU16,
    name: &str,
    parse: impl FnOnce(&str, &Names) -> Result<Question, String>,
) -> c_int {
    let Some(plugin) = plugin::get() else {
        tell_refusal(name);
        return -1;
    };
    let result = crate::guarded(Err("a defect".to_owned()), || {
        plugin.rules_are_loaded(rules.addr());
        let names = plugin.names.newest().ok_or("no model is open")?;
        let text = if option.is_null() {
            String::new()
        } else {
            // SAFETY: not NULL, so a C text.
            unsafe { CStr::from_ptr(option) }
                .to_string_lossy()
                .into_owned()
        };
        let question = parse(&text, &names)?;
        let task = question.task();
        let asked_tasks = &plugin.config.tasks;
        if !asked_tasks.is_empty() && !asked_tasks.iter().any(|asked| asked == task) {
            let asked = asked_tasks.join(", ");
            return Err(format!(
                "task {task} is not asked; trafficllm.tasks has {asked}"
            ));
        }
        let asked = Box::into_raw(Box::new(Asked::new(question)));
        let number = keyword.load(Ordering::Relaxed);
        // SAFETY: as the caller says; the option is freed by `free`.
        let added = unsafe {
            let append = plugin.host.symbols().rule_append;
            append(
                rules,
                rule,
                number,
                asked.cast::<SigMatchCtx>(),
                LIST_PACKET,
            )
        };
        if added.is_null() {
            // SAFETY: nobody else has it.
            drop(unsafe { Box::from_raw(asked) });
            return Err("Suricata has no memory for it".to_owned());
        }
        plugin.has_rules.store(true, Ordering::Relaxed);
        Ok(())
    });
    match result {
        Ok(()) => 0,
        Err(reason) => {
            log(Level::Error, &format!("trafficllm.{name}: {reason}"));
            -1
        }
    }
}

unsafe extern "C" fn free(_rules: *mut DetectEngineCtx, option: *mut c_void) {
    if option.is_null() {
        return;
    }
    // SAFETY: Suricata gives back, once, what `set_up` made.
    let asked = unsafe { Box::from_raw(option.cast::<Asked>()) };
    crate::guarded((), || drop(asked));
}

unsafe extern "C" fn matches(
    _thread: *mut DetectEngineThreadCtx,
    packet: *mut Packet,
    _rule: *const Signature,
    option: *const SigMatchCtx,
) -> c_int {
    let Some(plugin) = plugin::get() else {
        return 0;
    };
    // SAFETY: Suricata gives a live packet, whose flow this thread has locked, and the option of the rule.
    crate::guarded(0, || c_int::from(unsafe { holds(plugin, packet, option) }))
}

/// # Safety
/// A live packet whose flow, if it has one, this thread has locked, and an option of `set_up`.
unsafe fn holds(plugin: &Plugin, packet: *const Packet, option: *const SigMatchCtx) -> bool {
    // SAFETY: as the caller says.
    let (flow, asked) = unsafe { (packet::flow_of(packet), option.cast::<Asked>().as_ref()) };
    let Some(asked) = asked.filter(|_| !flow.is_null()) else {
        return false;
    };
    // SAFETY: as the caller says.
    let followed = unsafe { collect::followed(plugin, flow) };
    let verdict = followed.as_deref().and_then(collect::Followed::verdict);
    verdict.is_some_and(|verdict| is_usable(verdict) && asked.matches(verdict))
}

#[cfg(test)]
#[path = "keywords_tests.rs"]
mod tests;
