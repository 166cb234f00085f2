//! Reads a block of suricata.yaml into plain texts.

use std::ffi::{CStr, c_char};

use super::Host;
use super::symbols::ConfNode;

/// Most nodes of the block that are read: no list of it is longer.
const NODES_MAX: usize = 1_024;

/// What stands behind a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing, as `key:` alone.
    Empty,
    /// A text, a number or a yes.
    Text(String),
    /// A list of texts.
    List(Vec<String>),
    /// Keys of its own.
    Block,
}

/// A node's first fields (`SCConfNode`), which 8.0 has not changed.
#[repr(C)]
struct NodeHead {
    name: *const c_char,
    value: *const c_char,
}

impl Host {
    /// The keys of a block of suricata.yaml in their order, with what stands behind them; `None` where there is no such block.
    ///
    /// Only while the configuration does not change: in `Init`.
    #[must_use]
    pub fn block(&self, path: &CStr) -> Option<Vec<(String, Value)>> {
        // SAFETY: the path is a C text; the configuration is loaded.
        let node = unsafe { (self.symbols().conf_node)(path.as_ptr()) };
        if node.is_null() {
            return None;
        }
        // SAFETY: nodes stay while the configuration does not change.
        Some(unsafe { self.children(node) })
    }

    /// # Safety
    /// `node` is a live node, and none of the configuration changes.
    unsafe fn children(&self, node: *const ConfNode) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        // SAFETY: the caller vouches for the node; each further one was just given by Suricata.
        unsafe {
            let mut child = (self.symbols().conf_first)(node);
            while !child.is_null() && found.len() < NODES_MAX {
                let head = child.cast::<NodeHead>();
                let value = text((*head).value);
                let first = (self.symbols().conf_first)(child);
                let value = if (self.symbols().conf_is_sequence)(child) != 0 {
                    Value::List(self.items(first))
                } else if !first.is_null() {
                    Value::Block
                } else {
                    value.map_or(Value::Empty, Value::Text)
                };
                found.push((text((*head).name).unwrap_or_default(), value));
                child = (self.symbols().conf_next)(child);
            }
        }
        found
    }

    /// # Safety
    /// `item` is NULL or a live node, and none of the configuration changes.
    unsafe fn items(&self, mut item: *mut ConfNode) -> Vec<String> {
        let mut found = Vec::new();
        // SAFETY: as above.
        unsafe {
            while !item.is_null() && found.len() < NODES_MAX {
                found.push(text((*item.cast::<NodeHead>()).value).unwrap_or_default());
                item = (self.symbols().conf_next)(item);
            }
        }
        found
    }
}

/// # Safety
/// `pointer` is NULL or a C text.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    Some(
        unsafe { CStr::from_ptr(pointer) }
            .to_string_lossy()
            .into_owned(),
    )
}
