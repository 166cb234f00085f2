//! The groups of a split in parts of about the same size.

use crate::data::TaskData;

/// The fold of each item: items of one group are in one fold, and the items of each label are spread over the folds as far as its groups
/// allow. Depends on the data alone.
pub(super) fn folds(data: &TaskData, count: usize) -> Vec<usize> {
    let labels = data.labels.len();
    let mut of_group = vec![vec![0_usize; labels]; data.groups.len()];
    for item in &data.items {
        of_group[item.group][item.label] += 1;
    }
    let mut order: Vec<usize> = (0..data.groups.len()).collect();
    let size = |group: usize| of_group[group].iter().sum::<usize>();
    // The largest first, so that the small ones fill up what is uneven.
    order.sort_by_key(|&group| (std::cmp::Reverse(size(group)), group));
    let mut filled = vec![vec![0_usize; labels]; count];
    let mut fold_of_group = vec![0; data.groups.len()];
    for group in order {
        let load = |fold: usize| {
            let of_labels = of_group[group].iter().zip(&filled[fold]);
            let alike: usize = of_labels.map(|(own, there)| own.min(&1) * there).sum();
            (alike, filled[fold].iter().sum::<usize>(), fold)
        };
        let fold = (0..count)
            .min_by_key(|&fold| load(fold))
            .unwrap_or_default();
        for (there, own) in filled[fold].iter_mut().zip(&of_group[group]) {
            *there += own;
        }
        fold_of_group[group] = fold;
    }
    let items = data.items.iter();
    items.map(|item| fold_of_group[item.group]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Content, Item, TaskKind};

    #[test]
    fn groups_stay_whole_and_labels_are_spread() {
        let mut items = Vec::new();
        for label in 0..3 {
            for group in 0..10 {
                for _ in 0..=group {
                    items.push(Item {
                        label,
                        group: label * 10 + group,
                        content: Content::Request(String::new()),
                    });
                }
            }
        }
        let data = TaskData {
            task: "task".into(),
            kind: TaskKind::Request,
            labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
            groups: (0..30).map(|group| group.to_string()).collect(),
            items,
        };
        let found = folds(&data, 5);
        for group in 0..30 {
            let mut of_group = data
                .items
                .iter()
                .zip(&found)
                .filter(|(item, _)| item.group == group);
            let first = of_group.next().map(|(_, &fold)| fold);
            assert!(of_group.all(|(_, &fold)| Some(fold) == first));
        }
        for fold in 0..5 {
            for label in 0..3 {
                let here = |(item, of): &(&Item, &usize)| item.label == label && **of == fold;
                let count = data.items.iter().zip(&found).filter(here).count();
                assert!((10..=12).contains(&count), "{count}");
            }
        }
    }
}
