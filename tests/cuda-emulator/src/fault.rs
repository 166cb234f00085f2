//! A line that says which kernel touched memory that is not there, or at an address that it must not have, before the process ends for it.

use std::cell::Cell;
use std::ffi::c_int;
use std::fmt::Write as _;
use std::sync::OnceLock;

use crate::work::STACK_BYTES;

/// What runs on this thread of the system: where its stacks begin, how many they are, and the kernel's name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running<'a> {
    pub(crate) first_stack: usize,
    pub(crate) threads: usize,
    pub(crate) kernel: &'a str,
}

thread_local! {
    static RUNNING: Cell<Option<Running<'static>>> = const { Cell::new(None) };
}

/// Until it is dropped, a fault of this thread is told with the kernel's name.
pub(crate) struct Told;

impl Told {
    /// # Safety
    /// What it borrows outlives this.
    pub(crate) unsafe fn new(running: Running<'_>) -> Self {
        install();
        // SAFETY: it is taken back before what it borrows ends, as the caller says.
        let running = unsafe { std::mem::transmute::<Running<'_>, Running<'static>>(running) };
        RUNNING.set(Some(running));
        Self
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        RUNNING.set(None);
    }
}

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Memory that is not there, and what the compiler puts where an address is no multiple of what it has to be.
const FAULTS: [c_int; 2] = [libc::SIGSEGV, libc::SIGILL];

/// What was told of each of the faults before: it ends the process.
static BEFORE: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: all zeros is a value of it, and no handler.
        let (mut ours, mut before): (libc::sigaction, [libc::sigaction; 2]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        ours.sa_sigaction = tell as Handler as usize;
        // The stack of a thread may be what ran out.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for (fault, before) in FAULTS.into_iter().zip(&mut before) {
            // SAFETY: both are whole, and the handler does only what a handler may do.
            unsafe { libc::sigaction(fault, &ours, before) };
        }
        before
    });
}

/// Text of a fixed size: nothing is allocated in a handler.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

extern "C" fn tell(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if let Some(running) = RUNNING.get() {
        // SAFETY: the system gives both to a handler of this kind.
        let (address, stack) = unsafe { ((*info).si_addr().addr(), stack_pointer(context)) };
        let thread = stack
            .checked_sub(running.first_stack)
            .map(|distance| distance / STACK_BYTES)
            .filter(|&thread| thread < running.threads);
        let mut line = Line {
            bytes: [0; 256],
            used: 0,
        };
        let kernel = running.kernel;
        // It holds what fits.
        let _ = match thread {
            Some(thread) => write!(line, "kernel {kernel}, thread {thread}: "),
            None => write!(line, "kernel {kernel}: "),
        };
        let _ = match signal {
            libc::SIGILL => writeln!(line, "an address is not aligned"),
            _ => writeln!(line, "nothing is at {address:#x}"),
        };
        // SAFETY: the bytes are there.
        unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.used) };
    }
    let of_signal = FAULTS.iter().position(|fault| *fault == signal);
    if let Some((all, at)) = BEFORE.get().zip(of_signal) {
        let before = &all[at];
        // The access is made again, and then it is another's turn.
        // SAFETY: it is what was there before.
        unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
    }
}

/// # Safety
/// The context is one that a handler was given.
unsafe fn stack_pointer(context: *mut libc::c_void) -> usize {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        let context: *const libc::ucontext_t = context.cast_const().cast();
        // SAFETY: as the caller says.
        unsafe { (*context).uc_mcontext.gregs[libc::REG_RSP as usize] as usize }
    }
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    {
        let _ = context;
        0
    }
}
