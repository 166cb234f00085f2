//! How well a score tells what the model knows from what it does not.

/// Area under the receiver operating characteristic of the score as a detector of insiders: the probability that an insider's score is
/// higher than an outsider's, equal scores counted half (the Mann-Whitney statistic). Nothing where one side is empty.
#[must_use]
pub fn area_under_roc(insiders: &[f32], outsiders: &[f32]) -> Option<f64> {
    if insiders.is_empty() || outsiders.is_empty() {
        return None;
    }
    let inside = insiders.iter().map(|&score| (score, true));
    let outside = outsiders.iter().map(|&score| (score, false));
    let mut all: Vec<(f32, bool)> = inside.chain(outside).collect();
    all.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut below = 0_u64;
    let mut won = 0.0;
    for equal in all.chunk_by(|left, right| left.0 == right.0) {
        let ins = equal.iter().filter(|(_, inside)| *inside).count() as f64;
        let outs = equal.len() as f64 - ins;
        won += ins * (below as f64 + outs / 2.0);
        below += outs as u64;
    }
    Some(won / (insiders.len() as f64 * outsiders.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted() {
        // 0.9 beats both; 0.6 beats 0.5; 0.5 is equal to 0.5.
        let area = area_under_roc(&[0.9, 0.6, 0.5], &[0.5, 0.7]).expect("both sides");
        assert!((area - (2.0 + 1.0 + 0.5) / 6.0).abs() < 1e-12, "{area}");
    }

    #[test]
    fn one_half_and_nothing() {
        assert_eq!(area_under_roc(&[0.9, 0.8], &[0.1]), Some(1.0));
        assert_eq!(area_under_roc(&[0.1], &[0.9, 0.8]), Some(0.0));
        assert_eq!(area_under_roc(&[0.4; 5], &[0.4; 3]), Some(0.5));
        assert_eq!(area_under_roc(&[], &[0.4]), None);
        assert_eq!(area_under_roc(&[0.4], &[]), None);
    }
}
