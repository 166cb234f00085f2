//! Looks at a module before a compiler sees it.

use std::borrow::Cow;

use wasmtime::wasmparser::{
    BinaryReaderError, Encoding, ExportSectionReader, FunctionBody, Operator, Parser, Payload,
};

use crate::abi::IMPORT;
use crate::error::{HeadError, REASON_CHARACTERS_MAX, shown};
use crate::limits;

/// Under these names a module's mutable globals are exported, for the host to put them back.
pub(super) const GLOBAL_PREFIX: &str = "tllm.global.";

/// What is found on the way through a module.
struct Check<'a> {
    name: &'a str,
    bytes: &'a [u8],
    globals: u32,
    /// Numbers of the mutable ones.
    mutable_globals: Vec<u32>,
    functions: u32,
    /// Where the export section is, from its kind to its end, and what it holds behind its count.
    exports: Option<(std::ops::Range<usize>, u32, &'a [u8])>,
    /// Where the section before is over.
    section_start: usize,
}

/// The module as it is compiled: with its mutable globals exported.
///
/// # Errors
/// More of something than is taken, an import or an instruction that heads may not have, or no module at all.
pub(super) fn checked<'a>(name: &'a str, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, HeadError> {
    let mut check = Check {
        name,
        bytes,
        globals: 0,
        mutable_globals: Vec::new(),
        functions: 0,
        exports: None,
        section_start: 8,
    };
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(|error| check.broken(&error))?;
        check.payload(&payload)?;
        if let Some((_, range)) = payload.as_section() {
            check.section_start = range.end;
        }
    }
    Ok(check.rewritten())
}

impl<'a> Check<'a> {
    fn payload(&mut self, payload: &Payload<'a>) -> Result<(), HeadError> {
        match payload {
            Payload::Version { encoding, .. } if *encoding != Encoding::Module => {
                Err(self.forbidden("the file", "a component"))
            }
            Payload::ImportSection(imports) => {
                for import in imports.clone().into_imports() {
                    let import = import.map_err(|error| self.broken(&error))?;
                    if (import.module, import.name) != IMPORT {
                        return Err(HeadError::Import {
                            head: self.name.to_owned(),
                            import: shown(&format!("{}.{}", import.module, import.name), 80),
                            reason: format!("only {}.{} can be imported", IMPORT.0, IMPORT.1),
                        });
                    }
                }
                self.limit("imports", 1, imports.count())
            }
            Payload::FunctionSection(functions) => {
                self.limit("functions", limits::FUNCTIONS_MAX, functions.count())
            }
            Payload::GlobalSection(globals) => {
                self.limit("globals", limits::GLOBALS_MAX, globals.count())?;
                for global in globals.clone() {
                    let global = global.map_err(|error| self.broken(&error))?;
                    if global.ty.mutable {
                        self.mutable_globals.push(self.globals);
                    }
                    self.globals += 1;
                }
                Ok(())
            }
            Payload::ExportSection(exports) => self.exports(exports),
            Payload::CodeSectionEntry(body) => {
                self.functions += 1;
                self.function(body)
            }
            _ => Ok(()),
        }
    }

    fn exports(&mut self, exports: &ExportSectionReader<'a>) -> Result<(), HeadError> {
        self.limit("exports", limits::EXPORTS_MAX, exports.count())?;
        let range = exports.range();
        // Behind the count, which is a LEB128 number.
        let content = self.bytes.get(range.clone()).unwrap_or_default();
        let count_bytes = content.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
        let entries = content.get(count_bytes..).unwrap_or_default();
        self.exports = Some((self.section_start..range.end, exports.count(), entries));
        Ok(())
    }

    fn function(&self, body: &FunctionBody<'_>) -> Result<(), HeadError> {
        let place = || format!("function body {}", self.functions - 1);
        let broken = |error: BinaryReaderError| self.broken(&error);
        let bytes = body.range().len();
        self.limit(
            "bytes of a function",
            limits::FUNCTION_BYTES_MAX as u32,
            u32::try_from(bytes).unwrap_or(u32::MAX),
        )?;
        let mut locals = 0_u32;
        for local in body.get_locals_reader().map_err(broken)? {
            let (count, _) = local.map_err(broken)?;
            locals = locals.saturating_add(count);
        }
        self.limit("locals of a function", limits::LOCALS_MAX, locals)?;
        for operator in body.get_operators_reader().map_err(broken)? {
            let what = match operator.map_err(broken)? {
                Operator::TableSet { .. } => "table.set",
                Operator::TableGrow { .. } => "table.grow",
                Operator::TableFill { .. } => "table.fill",
                Operator::TableCopy { .. } => "table.copy",
                Operator::TableInit { .. } => "table.init",
                Operator::ElemDrop { .. } => "elem.drop",
                Operator::DataDrop { .. } => "data.drop",
                _ => continue,
            };
            return Err(self.forbidden(&place(), what));
        }
        Ok(())
    }

    /// The module with a further export for each mutable global. A module that has such an export already is refused by the compiler.
    fn rewritten(&self) -> Cow<'a, [u8]> {
        let Some((section, count, entries)) = &self.exports else {
            return Cow::Borrowed(self.bytes);
        };
        if self.mutable_globals.is_empty() {
            return Cow::Borrowed(self.bytes);
        }
        let mut content = Vec::new();
        push_number(&mut content, count + self.mutable_globals.len() as u32);
        content.extend_from_slice(entries);
        for number in &self.mutable_globals {
            let name = format!("{GLOBAL_PREFIX}{number}");
            push_number(&mut content, name.len() as u32);
            content.extend_from_slice(name.as_bytes());
            content.push(3);
            push_number(&mut content, *number);
        }
        let mut module = self.bytes.get(..section.start).unwrap_or_default().to_vec();
        module.push(7);
        push_number(&mut module, content.len() as u32);
        module.extend_from_slice(&content);
        module.extend_from_slice(self.bytes.get(section.end..).unwrap_or_default());
        Cow::Owned(module)
    }

    fn limit(&self, what: &'static str, limit: u32, found: u32) -> Result<(), HeadError> {
        if found <= limit {
            return Ok(());
        }
        Err(HeadError::Limit {
            head: self.name.to_owned(),
            what,
            limit: limit.into(),
            found: found.into(),
        })
    }

    fn forbidden(&self, place: &str, what: &'static str) -> HeadError {
        HeadError::Forbidden {
            head: self.name.to_owned(),
            place: place.to_owned(),
            what,
        }
    }

    fn broken(&self, error: &BinaryReaderError) -> HeadError {
        HeadError::Module {
            head: self.name.to_owned(),
            reason: shown(&error.to_string(), REASON_CHARACTERS_MAX),
        }
    }
}

/// An unsigned LEB128 number.
fn push_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
