//! A module at work.

use std::sync::Arc;

use wasmtime::{
    Caller, Extern, Global, Instance, Linker, Memory, Mutability, Store, StoreLimits,
    StoreLimitsBuilder, Trap, TypedFunc, Val, WasmParams,
};

use super::Isolation;
use super::head::Loaded;
use crate::abi::{
    AbiError, Answers, FlowInput, IMPORT, Needs, decode_verdicts, encode_flows, verdicts_bytes_max,
};
use crate::error::{Fault, REASON_CHARACTERS_MAX, shown};
use crate::head::{Conditions, HeadInstance, judged_bytes, start_with_room};
use crate::limits;
use crate::log::LogGate;

/// What the host keeps beside an instance.
pub(super) struct Host {
    limits: StoreLimits,
    log: Arc<LogGate>,
    lines_of_call: u32,
}

/// Lets modules import the log.
pub(super) fn link_log(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.func_wrap(IMPORT.0, IMPORT.1, log)?;
    Ok(())
}

fn log(mut caller: Caller<'_, Host>, level: u32, text: u32, bytes: u32) -> wasmtime::Result<()> {
    let left = caller.get_fuel()?.checked_sub(limits::LOG_FUEL);
    let Some(left) = left else {
        return Err(Trap::OutOfFuel.into());
    };
    caller.set_fuel(left)?;
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(Trap::MemoryOutOfBounds.into());
    };
    let (data, host) = memory.data_and_store_mut(&mut caller);
    let start = text as usize;
    let text = start
        .checked_add(bytes as usize)
        .and_then(|end| data.get(start..end));
    let Some(text) = text else {
        return Err(Trap::MemoryOutOfBounds.into());
    };
    host.log.line(host.lines_of_call, level, text);
    host.lines_of_call = host.lines_of_call.saturating_add(1);
    Ok(())
}

/// An instance with its fuel and its limits.
pub(super) struct Running {
    pub(super) store: Store<Host>,
    pub(super) instance: Instance,
    pub(super) memory: Memory,
    fuel: u64,
}

impl Running {
    /// Instantiates, which runs the module's start function.
    pub(super) fn new(loaded: &Loaded) -> Result<Self, Fault> {
        let options = &loaded.options;
        let limits = StoreLimitsBuilder::new()
            .memory_size(options.memory_bytes_max)
            .table_elements(limits::TABLE_ELEMENTS_MAX)
            .instances(1)
            .memories(1)
            .tables(1)
            .build();
        let host = Host {
            limits,
            log: Arc::clone(&loaded.log),
            lines_of_call: 0,
        };
        let mut store = Store::new(loaded.pre.module().engine(), host);
        store.limiter(|host| &mut host.limits);
        let fuel = options.fuel_to_start;
        let trapped = |error: wasmtime::Error| fault(&error, fuel);
        store.set_fuel(fuel).map_err(trapped)?;
        let instance =
            loaded
                .pre
                .instantiate(&mut store)
                .map_err(|error| match fault(&error, fuel) {
                    // Not what the module did, but that the pool is empty.
                    Fault::Trap(text) if error.downcast_ref::<Trap>().is_none() => {
                        Fault::Unavailable(text)
                    }
                    other => other,
                })?;
        let memory = instance.get_memory(&mut store, "memory");
        let memory = memory.ok_or_else(|| Fault::Unavailable("no memory".to_owned()))?;
        Ok(Self {
            store,
            instance,
            memory,
            fuel,
        })
    }

    /// Calls a function that gives one number, with the fuel that is left.
    pub(super) fn call<P: WasmParams>(
        &mut self,
        export: &'static str,
        parameters: P,
    ) -> Result<u32, Fault> {
        self.store.data_mut().lines_of_call = 0;
        let function = self
            .instance
            .get_typed_func::<P, u32>(&mut self.store, export);
        let function = function.map_err(|error| fault(&error, self.fuel))?;
        let result = function.call(&mut self.store, parameters);
        result.map_err(|error| fault(&error, self.fuel))
    }

    /// A place of so many bytes that the module named.
    fn place(&mut self, export: &'static str, head: u32, bytes: usize) -> Result<usize, Fault> {
        let at = self.call(export, head)? as usize;
        let size = self.memory.data_size(&self.store);
        let is_inside = at.checked_add(bytes).is_some_and(|end| end <= size);
        if at != 0 && at.is_multiple_of(8) && is_inside {
            return Ok(at);
        }
        let expected = format!("{bytes} bytes on a multiple of 8 within {size}");
        Err(AbiError::broken("memory", export, expected, at).into())
    }
}

/// What a mutable part of the module was after `begin`.
struct Snapshot {
    memory: Vec<u8>,
    globals: Vec<(Global, Val)>,
}

impl Snapshot {
    fn take(running: &mut Running) -> Self {
        let memory = running.memory.data(&running.store).to_vec();
        let (instance, store) = (running.instance, &mut running.store);
        let globals: Vec<Global> = instance
            .exports(&mut *store)
            .filter_map(|export| export.into_global())
            .collect();
        let mutable = globals
            .into_iter()
            .filter(|global| global.ty(&*store).mutability() == Mutability::Var)
            .collect::<Vec<_>>();
        let globals = mutable.into_iter().map(|global| {
            let value = global.get(&mut *store);
            (global, value)
        });
        let globals = globals.collect();
        Self { memory, globals }
    }

    /// What putting it back costs.
    fn fuel(&self) -> u64 {
        (self.memory.len() / limits::RESTORED_BYTES_PER_FUEL) as u64
    }

    /// Puts everything back; gives false where that cannot be done because the memory has grown.
    fn restore(&self, running: &mut Running) -> Result<bool, Fault> {
        let memory = running.memory.data_mut(&mut running.store);
        if memory.len() != self.memory.len() {
            return Ok(false);
        }
        memory.copy_from_slice(&self.memory);
        for (global, value) in &self.globals {
            let result = global.set(&mut running.store, *value);
            result.map_err(|error| fault(&error, running.fuel))?;
        }
        Ok(true)
    }
}

/// An instance that has begun.
struct Begun {
    running: Running,
    judge: TypedFunc<(u32, u32), i32>,
    head: u32,
    input_at: usize,
    output_at: usize,
    snapshot: Option<Snapshot>,
}

impl Begun {
    /// Forgets what was since it began, unless it may remember; gives false where that cannot be done.
    fn put_back(&mut self) -> Result<bool, Fault> {
        match &self.snapshot {
            Some(snapshot) => snapshot.restore(&mut self.running),
            None => Ok(true),
        }
    }
}

/// A module at work on one thread.
pub(super) struct WasmInstance {
    loaded: Arc<Loaded>,
    conditions: Conditions,
    needs: Needs,
    labels: usize,
    input_bytes: usize,
    output_bytes: usize,
    begun: Option<Begun>,
    fuel_used: u64,
}

impl WasmInstance {
    pub(super) fn new(
        loaded: &Arc<Loaded>,
        (needs, labels): (Needs, usize),
        conditions: &Conditions,
    ) -> Result<Self, Fault> {
        let is_one_by_one =
            loaded.options.isolation == Isolation::Flow && !needs.has(Needs::STATEFUL);
        let flows = if is_one_by_one {
            1
        } else {
            conditions.flows_max.clamp(1, limits::FLOWS_MAX)
        };
        start_with_room(conditions, flows, |conditions| {
            let mut instance = Self {
                loaded: Arc::clone(loaded),
                input_bytes: conditions.input_bytes_max(needs),
                output_bytes: verdicts_bytes_max(conditions.flows_max, labels),
                conditions,
                needs,
                labels,
                begun: None,
                fuel_used: 0,
            };
            instance.begun = Some(instance.begin()?);
            Ok(instance)
        })
    }

    fn begin(&self) -> Result<Begun, Fault> {
        let mut running = Running::new(&self.loaded)?;
        let sizes = (self.input_bytes as u32, self.output_bytes as u32);
        let head = running.call("tllm_head_new", sizes)?;
        if head == 0 {
            return Err(Fault::NoRoom {
                input_bytes: self.input_bytes,
                output_bytes: self.output_bytes,
            });
        }
        let input_at = running.place("tllm_head_input", head, self.input_bytes)?;
        let output_at = running.place("tllm_head_output", head, self.output_bytes)?;
        if input_at < output_at + self.output_bytes && output_at < input_at + self.input_bytes {
            let expected = "a place apart from the input";
            return Err(AbiError::broken("memory", "tllm_head_output", expected, output_at).into());
        }
        let memory = running.memory.data_mut(&mut running.store);
        let input = memory.get_mut(input_at..input_at + self.input_bytes);
        let length = input.and_then(|input| self.conditions.model.encode(input));
        let length = length.ok_or(Fault::TooLarge {
            room: self.input_bytes,
        })?;
        let status = running.call("tllm_head_begin", (head, length as u32))? as i32;
        if status < 0 {
            return Err(Fault::Refused {
                export: "tllm_head_begin",
                status,
            });
        }
        let judge = running
            .instance
            .get_typed_func(&mut running.store, "tllm_head_judge");
        let judge = judge.map_err(|error| fault(&error, running.fuel))?;
        let is_stateful = self.needs.has(Needs::STATEFUL);
        let snapshot = (!is_stateful).then(|| Snapshot::take(&mut running));
        let restored = snapshot.as_ref().map_or(0, Snapshot::fuel);
        let per_flow = self.loaded.options.fuel_per_flow;
        // No flow could ever be paid for.
        if restored >= per_flow {
            tracing::debug!(
                restored,
                per_flow,
                "putting its memory back costs more fuel than a flow has"
            );
            return Err(Fault::Fuel { fuel: per_flow });
        }
        Ok(Begun {
            running,
            judge,
            head,
            input_at,
            output_at,
            snapshot,
        })
    }
}

impl HeadInstance for WasmInstance {
    fn judge(&mut self, flows: &[FlowInput<'_>], answers: &mut Answers) -> Result<(), Fault> {
        let mut begun = match self.begun.take() {
            Some(begun) => begun,
            None => self.begin()?,
        };
        let running = &mut begun.running;
        let memory = running.memory.data_mut(&mut running.store);
        let input = memory.get_mut(begun.input_at..begun.input_at + self.input_bytes);
        let length = input.and_then(|input| encode_flows(flows, self.needs, input));
        let Some(length) = length else {
            // A part of the flow may stand in the input: the next one must not find it.
            self.begun = begun.put_back()?.then_some(begun);
            return Err(Fault::TooLarge {
                room: self.input_bytes,
            });
        };
        let fuel = self
            .loaded
            .options
            .fuel_per_flow
            .saturating_mul(flows.len() as u64);
        running.fuel = fuel;
        running.store.data_mut().lines_of_call = 0;
        let trapped = |error: wasmtime::Error| fault(&error, fuel);
        let restored = begun.snapshot.as_ref().map_or(0, Snapshot::fuel);
        let left = fuel.checked_sub(restored).ok_or(Fault::Fuel { fuel })?;
        running.store.set_fuel(left).map_err(trapped)?;
        let status = begun
            .judge
            .call(&mut running.store, (begun.head, length as u32))
            .map_err(trapped)?;
        self.fuel_used = fuel.saturating_sub(running.store.get_fuel().unwrap_or(0));
        let length = judged_bytes(status, self.output_bytes)?;
        let memory = running.memory.data(&running.store);
        let output = memory.get(begun.output_at..begun.output_at + length);
        decode_verdicts(
            output.unwrap_or_default(),
            flows.len(),
            self.labels,
            answers,
        )?;
        // Where the memory has grown, the next call begins anew.
        self.begun = begun.put_back()?.then_some(begun);
        Ok(())
    }

    fn flows_max(&self) -> usize {
        self.conditions.flows_max
    }

    fn is_spent(&self) -> bool {
        self.begun.is_none()
    }

    fn fuel_used(&self) -> Option<u64> {
        Some(self.fuel_used)
    }

    fn memory_bytes(&self) -> Option<usize> {
        let running = &self.begun.as_ref()?.running;
        Some(running.memory.data_size(&running.store))
    }
}

/// What an error of wasmtime says of the head.
pub(super) fn fault(error: &wasmtime::Error, fuel: u64) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Fault::Fuel { fuel },
        Some(Trap::StackOverflow) => Fault::Stack,
        Some(trap) => Fault::Trap(trap.to_string()),
        // With the names of the module's functions in it.
        None => Fault::Trap(shown(&format!("{error:#}"), REASON_CHARACTERS_MAX)),
    }
}

// The store of an instance goes with it to another thread.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<WasmInstance>();
};
