//! The kernels as they are given to the compiler at run time: texts that are part of this library, and what is defined for each.

use std::fmt;
use std::hash::{Hash, Hasher};

use super::variants::Define;

macro_rules! headers {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../../cuda/", $name)))),*]
    };
}

/// The headers that the texts include, by name.
pub const HEADERS: [(&str, &str); 10] = headers![
    "arguments.cuh",
    "attention.cuh",
    "device.cuh",
    "norm.cuh",
    "product_bf16.cuh",
    "product_epilogue.cuh",
    "product_int4.cuh",
    "product_int8.cuh",
    "product_tile.cuh",
    "product_warp.cuh"
];

/// One kernel: a text, the name of the kernel in it, and what is defined for it.
#[derive(Clone, PartialEq, Eq)]
pub struct KernelSource {
    file: &'static str,
    text: &'static str,
    kernel: &'static str,
    defines: Vec<Define>,
}

impl KernelSource {
    /// A kernel of a text of one's own, which may include [`HEADERS`]; `file` names it in what the compiler says.
    ///
    /// What is launched with it has to be right for it: that is the launcher's promise, see [`Device::launch`](super::Device::launch).
    #[must_use]
    pub fn from_text(
        file: &'static str,
        text: &'static str,
        kernel: &'static str,
        defines: &[Define],
    ) -> Self {
        Self {
            file,
            text,
            kernel,
            defines: defines.to_vec(),
        }
    }

    /// Name of the file of the text.
    #[must_use]
    pub fn file(&self) -> &'static str {
        self.file
    }

    /// The text, in CUDA C++.
    #[must_use]
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// Name of the kernel.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// What is defined for it.
    #[must_use]
    pub fn defines(&self) -> &[Define] {
        &self.defines
    }

    /// The same as options of a compiler, `-DNAME=VALUE`.
    pub fn options(&self) -> impl Iterator<Item = String> + '_ {
        self.defines
            .iter()
            .map(|(name, value)| format!("-D{name}={value}"))
    }

    pub(super) fn product(defines: &[Define]) -> Self {
        let text = include_str!("../../cuda/product.cu");
        Self::from_text("product.cu", text, "product", defines)
    }

    pub(super) fn product_wgmma(defines: &[Define]) -> Self {
        let text = include_str!("../../cuda/product_wgmma.cu");
        Self::from_text("product_wgmma.cu", text, "product_wgmma", defines)
    }

    pub(super) fn attend(defines: &[Define]) -> Self {
        let text = include_str!("../../cuda/attention.cu");
        Self::from_text("attention.cu", text, "attend", defines)
    }

    /// `embed`, `quantise` or `gather`.
    pub(super) fn rows(kernel: &'static str) -> Self {
        Self::from_text("rows.cu", include_str!("../../cuda/rows.cu"), kernel, &[])
    }

    pub(super) fn low_rank_coefficients() -> Self {
        let text = include_str!("../../cuda/low_rank.cu");
        Self::from_text("low_rank.cu", text, "low_rank_coefficients", &[])
    }

    pub(super) fn label_scores() -> Self {
        let text = include_str!("../../cuda/labels.cu");
        Self::from_text("labels.cu", text, "label_scores", &[])
    }
}

/// The text is left out: names and defines tell kernels apart well enough.
impl Hash for KernelSource {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.file, self.kernel, &self.defines).hash(state);
    }
}

impl fmt::Debug for KernelSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "KernelSource({self})")
    }
}

/// As errors name it: the kernel, and what is defined for it.
impl fmt::Display for KernelSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kernel)?;
        self.defines
            .iter()
            .try_for_each(|(name, value)| write!(formatter, " {name}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is compiled at run time has no folder to look in: a header that is not part of the library would be missed only there.
    #[test]
    fn all_headers_are_part_of_the_library() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".cuh"))
            .collect();
        found.sort();
        let known: Vec<&str> = HEADERS.iter().map(|(name, _text)| *name).collect();
        assert_eq!(found, known);
    }

    #[test]
    fn kernels_are_told_apart_and_named() {
        let one = KernelSource::from_text("a.cu", "text", "a", &[("ONE", 1)]);
        let other = KernelSource::from_text("a.cu", "text", "a", &[("ONE", 2)]);
        assert_ne!(one, other);
        assert_eq!(one, one.clone());
        assert_ne!(
            one,
            KernelSource::from_text("a.cu", "other", "a", &[("ONE", 1)])
        );
        assert_eq!(other.to_string(), "a ONE=2");
        assert_eq!(other.options().collect::<Vec<_>>(), ["-DONE=2"]);
    }
}
