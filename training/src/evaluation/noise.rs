//! The noise that a model is scored under.

use crate::augment::Noise;

const NONE: Noise = Noise {
    loss: 0.0,
    reorder: 0.0,
    delay_ms: 0.0,
    truncate_bytes: None,
};

/// What an evaluation goes through: one kind at a time.
pub const NOISES: [Noise; 6] = [
    Noise { loss: 0.05, ..NONE },
    Noise { loss: 0.10, ..NONE },
    Noise { loss: 0.20, ..NONE },
    Noise {
        reorder: 0.10,
        ..NONE
    },
    Noise {
        delay_ms: 20.0,
        ..NONE
    },
    Noise {
        truncate_bytes: Some(32),
        ..NONE
    },
];

/// What tables call it.
#[must_use]
pub(super) fn name(noise: &Noise) -> String {
    let mut parts = Vec::new();
    if noise.loss > 0.0 {
        parts.push(format!("loss {:.0} %", 100.0 * noise.loss));
    }
    if noise.reorder > 0.0 {
        parts.push(format!("reorder {:.0} %", 100.0 * noise.reorder));
    }
    if noise.delay_ms > 0.0 {
        parts.push(format!("delay 0-{} ms", noise.delay_ms));
    }
    if let Some(bytes) = noise.truncate_bytes {
        parts.push(format!("payload cut to {bytes} bytes"));
    }
    if parts.is_empty() {
        "no noise".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_noise_is_valid_and_has_a_name_of_its_own() {
        let mut names: Vec<String> = NOISES.iter().map(name).collect();
        assert_eq!(names[0], "loss 5 %");
        assert_eq!(names[4], "delay 0-20 ms");
        assert!(NOISES.iter().all(|noise| noise.validate().is_ok()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), NOISES.len());
        assert_eq!(name(&NONE), "no noise");
    }
}
