//! What was measured, round by round, and what follows from it.

use std::collections::BTreeMap;

/// What a number is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub(super) workload: String,
    pub(super) uplink: &'static str,
    /// 4 or 6; none where it makes no difference.
    pub(super) family: Option<u8>,
    pub(super) path: String,
    pub(super) unit: &'static str,
}

/// A subject's numbers in one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) rounds: usize,
}

impl Summary {
    /// Of any numbers; none of no numbers.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.iter().copied().filter(|value| value.is_finite()).collect::<Vec<_>>();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: middle(&sorted)?, min, max, rounds: sorted.len() })
    }

    /// How far the numbers lie apart, as a part of the median.
    pub(super) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / self.median.abs() }
    }

    /// Whether they lie so far apart that the median says little.
    pub(super) fn is_noisy(&self) -> bool {
        self.spread() > 0.2
    }
}

/// The median; none of no numbers.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    Summary::of(values).map(|summary| summary.median)
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(half.checked_sub(1)?)?, upper))
}

/// All numbers of a run.
#[derive(Debug, Default)]
pub(super) struct Record {
    rounds: BTreeMap<Subject, Vec<f64>>,
    ratios: Vec<(String, Vec<f64>)>,
    remarks: Vec<String>,
}

impl Record {
    /// Adds a round's number.
    pub(super) fn add(&mut self, subject: Subject, value: f64) {
        self.rounds.entry(subject).or_default().push(value);
    }

    /// Adds a ratio: for each round one.
    pub(super) fn ratio(&mut self, name: impl Into<String>, ours: &[f64], peers: &[f64]) {
        let values = ours.iter().zip(peers).map(|(ours, peer)| ours / peer).collect::<Vec<_>>();
        if !values.is_empty() {
            self.ratios.push((name.into(), values));
        }
    }

    /// Adds something that a reader of the numbers has to know, once.
    pub(super) fn remark(&mut self, remark: impl Into<String>) {
        let remark = remark.into();
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// The numbers of a subject.
    pub(super) fn of(&self, subject: &Subject) -> &[f64] {
        self.rounds.get(subject).map(Vec::as_slice).unwrap_or_default()
    }

    /// Every subject, summed up.
    pub(super) fn figures(&self) -> impl Iterator<Item = (&Subject, Summary)> {
        self.rounds.iter().filter_map(|(subject, values)| Some((subject, Summary::of(values)?)))
    }

    /// Every ratio, summed up.
    pub(super) fn ratios(&self) -> impl Iterator<Item = (&str, Summary)> {
        self.ratios.iter().filter_map(|(name, values)| Some((name.as_str(), Summary::of(values)?)))
    }

    /// Every remark.
    pub(super) fn remarks(&self) -> &[String] {
        &self.remarks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let summary = Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((summary.median, summary.min, summary.max, summary.rounds), (2.5, 1.0, 4.0, 4));
        assert!(summary.is_noisy());
        assert_eq!(Summary::of(&[]), None);
        assert!(!Summary::of(&[10.0, 11.0, 10.5]).unwrap().is_noisy());
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let mut record = Record::default();
        record.ratio("a", &[1.0, 2.0, 9.0], &[2.0, 4.0, 9.0]);
        record.ratio("none", &[], &[]);
        let ratios = record.ratios().collect::<Vec<_>>();
        assert_eq!(ratios.len(), 1);
        assert_eq!(ratios[0].1.median, 0.5);
    }
}
