//! Networks with more: another task, low-rank additions, a fresh adapter. What was there keeps its values, bit for bit.

use super::layout::{Form, Part, TaskRows, forms};
use super::{Network, NetworkConfig, Result};

impl Network {
    /// This network with one more task, the last one, of so many labels. Its adapter starts as that of a network with this one
    /// task and this seed does.
    ///
    /// # Errors
    /// If a task cannot have so many labels.
    pub fn with_task_added(&self, labels: usize, seed: u64) -> Result<Self> {
        let mut config = self.config.clone();
        config.task_labels.push(labels);
        self.rebuilt(config, seed)
    }

    /// This network with more labels for a task, the last ones; all else of its adapter stays.
    ///
    /// # Errors
    /// If there is no such task, or it cannot have so many labels, or has more.
    pub fn with_labels(&self, task: usize, labels: usize, seed: u64) -> Result<Self> {
        self.check_task(task)?;
        let mut config = self.config.clone();
        if labels < config.task_labels[task] {
            let expected = format!("at least {}", config.task_labels[task]);
            return Err(super::NetworkError::size("labels", expected, labels));
        }
        config.task_labels[task] = labels;
        self.rebuilt(config, seed)
    }

    /// This network with low-rank additions of this rank. They add nothing until they are trained, so the answers stay the same;
    /// where there were some of a lower rank, these stay and the new ones are beside them.
    ///
    /// # Errors
    /// If the rank is past its limit, or below the one that the network has.
    pub fn with_lora_rank(&self, rank: usize, seed: u64) -> Result<Self> {
        if rank < self.config.lora_rank {
            let expected = format!("at least {}", self.config.lora_rank);
            return Err(super::NetworkError::size("lora_rank", expected, rank));
        }
        let config = NetworkConfig {
            lora_rank: rank,
            ..self.config.clone()
        };
        self.rebuilt(config, seed)
    }

    /// A network of other sizes: the base as it is, and of each task that this one has what it has.
    fn rebuilt(&self, config: NetworkConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let mut network = Self::build(config.clone(), |form| {
            let own = self.parameters.iter().find(|own| own.name == form.name);
            if form.part == Part::Base {
                return own.map_or_else(|| Ok(form.initial(seed)), super::Parameter::values);
            }
            let width = form.shape[1];
            let mut values = Vec::with_capacity(form.shape.iter().product());
            for (task, &labels) in config.task_labels.iter().enumerate() {
                let mut kept = match own {
                    Some(own) => own.values()?[self.task_values(own, task)].to_vec(),
                    None => Vec::new(),
                };
                let rows = match form.rows {
                    TaskRows::Equal(rows) => rows,
                    _ => labels,
                };
                if kept.len() < rows * width {
                    let fresh = initial(&single(&config, labels)?, form, seed);
                    kept.extend_from_slice(&fresh[kept.len()..]);
                }
                values.extend(kept);
            }
            Ok(values)
        })?;
        network.precision = self.precision;
        Ok(network)
    }
}

/// The forms of a network with one task.
fn single(config: &NetworkConfig, labels: usize) -> Result<Vec<Form>> {
    let config = NetworkConfig {
        task_labels: vec![labels],
        ..config.clone()
    };
    config.check()?;
    Ok(forms(&config))
}

/// How the parameter of this name starts there.
fn initial(single: &[Form], form: &Form, seed: u64) -> Vec<f32> {
    let found = single.iter().find(|other| other.name == form.name);
    found.map_or_else(Vec::new, |other| other.initial(seed))
}
