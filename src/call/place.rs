//! Where the numbers of an array of samples by classes lie, if they are not contiguous rows.

use std::ops::Range;

/// The strides of an array of samples by classes. Positions count from the lowest address of its numbers.
#[derive(Clone, Debug)]
pub struct Place {
    /// The position of class 0 of sample 0.
    start: isize,
    /// The step from one class to the next.
    class: isize,
    /// Length and step of each axis of samples, in C order. At least one axis.
    samples: Vec<(usize, isize)>,
}

/// Consecutive samples at a constant step.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The first sample, counted from the first of all lines.
    pub row: usize,
    /// How many there are.
    pub n: usize,
    /// The position of class 0 of the first sample.
    pub at: isize,
}

impl Place {
    /// The place of an array of this shape and these steps, whose class axis is `axis`. No axis has length 0.
    pub fn new(shape: &[usize], steps: &[isize], axis: usize) -> Self {
        let mut samples: Vec<(usize, isize)> = vec![];
        let mut start = 0;
        for (i, (&n, &step)) in shape.iter().zip(steps).enumerate() {
            start -= (step * (n as isize - 1)).min(0);
            if i == axis || n == 1 {
                continue;
            }
            match samples.last_mut() {
                // Two axes are one where the outer one continues the inner one.
                Some((outer, far)) if *far == step * n as isize => {
                    (*outer, *far) = (*outer * n, step)
                }
                _ => samples.push((n, step)),
            }
        }
        if samples.is_empty() {
            samples.push((1, 1));
        }
        Place { start, class: steps[axis], samples }
    }

    /// Whether these are contiguous rows of so many classes.
    pub fn is_rows(&self, classes: usize) -> bool {
        self.start == 0
            && (self.class == 1 || classes == 1)
            && matches!(self.samples[..], [(n, step)] if n == 1 || step == classes as isize)
    }

    /// The position of a number.
    pub fn at(&self, sample: usize, class: usize) -> usize {
        let (mut rest, mut at) = (sample, self.start + class as isize * self.class);
        for &(n, step) in self.samples.iter().rev() {
            at += (rest % n) as isize * step;
            rest /= n;
        }
        at as usize
    }

    /// The position of class 0 of a sample, and how many samples are left in its line, itself included.
    pub fn line_at(&self, sample: usize) -> (usize, usize) {
        let length = self.samples[self.samples.len() - 1].0;
        (self.at(sample, 0), length - sample % length)
    }

    /// Whether the numbers of a sample lie next to each other.
    pub fn has_contiguous_classes(&self) -> bool {
        self.class == 1
    }

    /// The step from one class to the next.
    pub fn class_step(&self) -> isize {
        self.class
    }

    /// The step from one sample of a line to the next.
    pub fn sample_step(&self) -> isize {
        self.samples[self.samples.len() - 1].1
    }

    /// Splits some samples into runs of contiguous rows, where the classes of each sample are contiguous: whole lines
    /// where one row follows the other, else single rows.
    pub fn runs(&self, samples: Range<usize>, classes: usize) -> impl Iterator<Item = Line> {
        debug_assert!(self.has_contiguous_classes());
        let step = self.sample_step();
        let together = step == classes as isize;
        self.lines(samples).flat_map(move |line| {
            let (count, n) = if together { (1, line.n) } else { (line.n, 1) };
            (0..count).map(move |i| Line { row: line.row + i, n, at: line.at + i as isize * step })
        })
    }

    /// Splits some samples into lines.
    pub fn lines(&self, samples: Range<usize>) -> impl Iterator<Item = Line> {
        let length = self.samples[self.samples.len() - 1].0;
        let mut next = samples.start;
        std::iter::from_fn(move || {
            let n = (length - next % length).min(samples.end - next);
            let line = Line { row: next - samples.start, n, at: self.at(next, 0) as isize };
            next += n;
            (n > 0).then_some(line)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_a_class_axis_in_the_middle() {
        // Shape (2, 3, 4), C order, the first axis backwards.
        let place = Place::new(&[2, 3, 4], &[-12, 4, 1], 1);
        for sample in 0..8 {
            for class in 0..3 {
                let expected = (1 - sample / 4) * 12 + class * 4 + sample % 4;
                assert_eq!(place.at(sample, class), expected);
            }
        }
        let lines: Vec<_> = place.lines(1..7).map(|line| (line.row, line.n, line.at)).collect();
        assert_eq!(lines, [(0, 3, 13), (3, 3, 0)]);
        assert_eq!((place.class_step(), place.sample_step()), (4, 1));
        // Axes that continue each other are one line.
        let place = Place::new(&[5, 3, 2, 7], &[42, 14, 7, 1], 1);
        assert_eq!(place.lines(0..70).count(), 5);
        let place = Place::new(&[3, 2, 7], &[14, 7, 1], 0);
        assert_eq!(place.lines(0..14).count(), 1);
        assert_eq!(place.lines(3..3).count(), 0);
    }
}
