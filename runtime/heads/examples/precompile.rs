//! Compiles a module for hosts without a compiler: `cargo run -p trafficllm-heads --features cranelift,pulley --example precompile -- native
//! head.wasm head.cwasm`; `interpreted` in place of `native` for the interpreter. Prints the SHA-256 by which the result is trusted.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

use std::error::Error;
use std::fs;

use trafficllm_heads::{Execution, Sandbox, SandboxOptions, sha256};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [execution, from, to] = arguments.as_slice() else {
        return Err("precompile native|interpreted FROM TO".into());
    };
    let execution = match execution.as_str() {
        "native" => Execution::Native,
        "interpreted" => Execution::Interpreted,
        other => return Err(format!("native or interpreted, not {other}").into()),
    };
    let options = SandboxOptions {
        execution,
        allows_state: true,
        ..SandboxOptions::default()
    };
    let compiled = Sandbox::new(options)?.precompile(from, &fs::read(from)?)?;
    fs::write(to, &compiled)?;
    let hex: String = sha256(&compiled)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("{hex}  {to}");
    Ok(())
}
