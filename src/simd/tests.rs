//! Every operation at every level of this machine against plain arithmetic on its lanes.

use super::*;

/// Runs a test at every level of this machine, and prints which these are: a level that is missing has not passed.
fn at_every_level(check: impl Fn(Level)) {
    for level in Level::available() {
        println!("level {}", level.name());
        check(level);
    }
}

struct Operations;

fn operations<S: Simd, T: Float>(s: S) {
    let n = T::LANES;
    let number = |i: usize| T::from_f64((i as f64 - 5.25) * 1.5);
    let values: Vec<T> = (0..4 * n).map(number).collect();
    let src = Input::from_slice(&values);
    let (a, b) = (T::V::<S>::load(s, src, 1), T::V::<S>::load(s, src, 2 * n - 3));
    let check = |name: &str, result: T::V<S>, f: &dyn Fn(f64, f64) -> f64| {
        for (i, x) in result.to_lanes().as_ref().iter().enumerate() {
            let expected = f(values[1 + i].to_f64(), values[2 * n - 3 + i].to_f64());
            assert_eq!(x.to_f64(), T::from_f64(expected).to_f64(), "{name}, lane {i}");
        }
    };
    check("add", a.add(b), &|x, y| x + y);
    check("sub", a.sub(b), &|x, y| x - y);
    check("mul", a.mul(b), &|x, y| x * y);
    check("div", a.div(b), &|x, y| x / y);
    check("mul_add", a.mul_add(b, a), &|x, y| x * y + x);
    check("fma", a.fma(b, a), &|x, y| x * y + x);
    check("max", a.max(b), &f64::max);
    check("min", a.min(b), &f64::min);
    check("abs", a.abs(), &|x, _| x.abs());
    let less = a.lt(T::V::<S>::splat(s, T::from_f64(0.0)));
    check("select", T::V::<S>::select(less, a, b), &|x, y| {
        if x < 0.0 { x } else { y }
    });
    let nan = T::V::<S>::splat(s, T::from_f64(f64::NAN));
    check("not_lt", T::V::<S>::select(a.not_lt(b), a, b), &f64::max);
    check("not_lt of NaN", T::V::<S>::select(nan.not_lt(a), a, b), &|x, _| x);
    check("eq", T::V::<S>::select(a.eq(a), a, b), &|x, _| x);

    check("max with NaN first", nan.max(b), &|_, y| y);
    check("min with NaN first", nan.min(b), &|_, y| y);
    for x in a.max(nan).add(a.min(nan)).to_lanes().as_ref() {
        assert!(x.to_f64().is_nan());
    }

    for lanes in (0..=T::ALL).step_by(if n == 16 { 37 } else { 1 }).chain([T::ALL]) {
        assert_eq!(T::V::<S>::lanes(T::V::<S>::mask(s, lanes)), lanes);
        // A view that ends with the last lane: nothing past it may be touched.
        let end = (u32::BITS - lanes.leading_zeros()) as usize;
        let part = src.part(3, end);
        let loaded = T::V::<S>::load_lanes(s, part, 0, lanes, b).to_lanes();
        let mut written = vec![T::from_f64(99.0); end];
        a.store_lanes(Output::from_slice(&mut written), 0, lanes);
        for i in 0..n {
            let inside = lanes >> i & 1 != 0;
            let expected = if inside { values[3 + i] } else { values[2 * n - 3 + i] };
            assert_eq!(loaded.as_ref()[i], expected);
            if i < end {
                let expected = if inside { values[1 + i] } else { T::from_f64(99.0) };
                assert_eq!(written[i], expected);
            }
        }
    }

    let bytes: Vec<u8> = (0..=n).map(|i| (i * 37 + 200) as u8).collect();
    let loaded = T::V::<S>::load_bytes(s, Input::from_slice(&bytes), 1);
    for (i, x) in loaded.to_lanes().as_ref().iter().enumerate() {
        assert_eq!(x.to_f64(), f64::from(bytes[1 + i]));
    }

    let index: Vec<T> = (0..n).map(|i| T::from_bits((i * 5 + 3) as u64 % n as u64 + 64)).collect();
    let index = T::V::<S>::load(s, Input::from_slice(&index), 0);
    for (i, x) in a.permute(index).to_lanes().as_ref().iter().enumerate() {
        assert_eq!(*x, values[1 + (i * 5 + 3) % n]);
    }
    let bits = |x: T::V<S>| x.to_lanes().as_ref()[2].to_bits();
    let (x, y) = (values[3].to_bits(), values[2 * n - 1].to_bits());
    let width = 8 * size_of::<T>() as u32;
    let wrap = |x: u64| if width == 32 { x & 0xFFFF_FFFF } else { x };
    assert_eq!(bits(a.bits_add(b)), wrap(x.wrapping_add(y)));
    assert_eq!(bits(a.bits_sub(b)), wrap(x.wrapping_sub(y)));
    assert_eq!(bits(a.bits_shl(19)), wrap(x << 19));
    assert_eq!(bits(a.bits_shr(23)), x >> 23);
    assert_eq!(bits(a.bits_and(b)), x & y);
    assert_eq!(bits(a.bits_or(b)), x | y);

    for part in 0..T::WIDE {
        for (i, x) in a.wide(part).to_lanes().as_ref().iter().enumerate() {
            assert_eq!(*x, values[1 + part * 8 + i].to_f64());
        }
    }

    macro_rules! check_columns {
        ($load:ident, $store:ident, $columns:expr) => {
            for stride in [$columns / 2, $columns, n + 3] {
                let numbers: Vec<T> = (0..n * stride + $columns).map(number).collect();
                let src = Input::from_slice(&numbers).part(1, (n - 1) * stride + $columns);
                let columns = T::V::<S>::$load(s, src, 0, stride);
                for (j, column) in columns.iter().enumerate() {
                    for (i, x) in column.to_lanes().as_ref().iter().enumerate() {
                        assert_eq!(*x, numbers[1 + i * stride + j]);
                    }
                }
                let mut written = vec![T::from_f64(99.0); numbers.len()];
                let dst = Output::from_slice(&mut written).part(1, src.len());
                T::V::<S>::$store(columns, dst, 0, stride);
                for (i, x) in written.into_iter().enumerate() {
                    let inside = (1..=src.len()).contains(&i) && (i - 1) % stride < $columns;
                    assert_eq!(x, if inside { numbers[i] } else { T::from_f64(99.0) });
                }
            }
        };
    }
    check_columns!(load_columns, store_columns, COLUMNS);
    check_columns!(load_half, store_half, HALF);
    check_columns!(load_pair, store_pair, PAIR);

    let third = |part| a.wide(part).div(S::V64::splat(s, 3.0));
    check("narrow", T::V::<S>::narrow([third(0), third(T::WIDE - 1)]), &|x, _| x / 3.0);

    let scratch = Scratch::<T>::new(3 * n + 1);
    a.stream(scratch.output(), n);
    b.stream(scratch.output(), 2 * n + 1);
    a.store(scratch.output(), 0);
    fence();
    for i in 0..n {
        assert_eq!(scratch.input().get(i), values[1 + i]);
        assert_eq!(scratch.input().get(n + i), values[1 + i]);
        assert_eq!(scratch.input().get(2 * n + 1 + i), values[2 * n - 3 + i]);
    }
    assert_eq!(scratch.output().unaligned(), 0);
    assert_eq!(scratch.output().part(1, n).unaligned(), n - 1);
}

impl Kernel for Operations {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        operations::<S, f32>(s);
        operations::<S, f64>(s);
    }
}

#[test]
fn operations_of_every_level() {
    at_every_level(|level| enter(level, Operations));
}

#[test]
fn the_portable_fma_keeps_what_cancels() {
    struct Cancel;
    impl Kernel for Cancel {
        type Output = [f64; 2];
        #[inline(always)]
        fn eval<S: Simd>(self, s: S) -> [f64; 2] {
            let x = 1.0 + f64::EPSILON;
            let (a, c) = (S::V64::splat(s, x), S::V64::splat(s, -(x * x)));
            let y = 1.0 + f32::EPSILON;
            let (b, d) = (S::V32::splat(s, y), S::V32::splat(s, -(y * y)));
            [a.fma(a, c).to_lanes()[0], f64::from(b.fma(b, d).to_lanes()[0])]
        }
    }
    at_every_level(|level| {
        let expected = [f64::EPSILON.powi(2), f64::from(f32::EPSILON).powi(2)];
        assert_eq!(enter(level, Cancel), expected);
    });
}

/// Reads or writes columns of rows that are so far from each other that the end of the last one overflows.
struct Far<T> {
    zero: T,
    stride: usize,
    operation: usize,
}

impl<T: Float> Kernel for Far<T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd>(self, s: S) {
        let Far { zero, stride, operation } = self;
        let (from, mut into) = ([zero; 40], [zero; 40]);
        let (src, dst) = (Input::from_slice(&from), Output::from_slice(&mut into));
        let x = T::V::<S>::splat(s, zero);
        match operation {
            0 => _ = T::V::<S>::load_columns(s, src, 0, stride),
            1 => _ = T::V::<S>::load_half(s, src, 0, stride),
            2 => _ = T::V::<S>::load_pair(s, src, 0, stride),
            3 => T::V::<S>::store_columns([x; COLUMNS], dst, 0, stride),
            4 => T::V::<S>::store_half([x; HALF], dst, 0, stride),
            _ => T::V::<S>::store_pair([x; PAIR], dst, 0, stride),
        }
    }
}

fn refused(f: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
}

#[test]
fn rows_that_are_too_far_from_each_other_panic() {
    // What times an odd number is 1, modulo 2^64, by Newton's iteration.
    let inverse = |odd: usize| {
        (0..7).fold(odd, |x, _| x.wrapping_mul(2usize.wrapping_sub(odd.wrapping_mul(x))))
    };
    assert_eq!(inverse(15).wrapping_mul(15), 1);
    at_every_level(|level| {
        for operation in 0..6 {
            let far = Far { zero: 0.0f32, stride: inverse(15), operation };
            assert!(refused(|| enter(level, far)), "{operation}");
            let far = Far { zero: 0.0f64, stride: inverse(7), operation };
            assert!(refused(|| enter(level, far)), "{operation}");
        }
    });
}

#[test]
fn a_wrong_index_panics() {
    at_every_level(|level| {
        struct Past;
        impl Kernel for Past {
            type Output = ();
            #[inline(always)]
            fn eval<S: Simd>(self, s: S) {
                let values = [0.0f32; 20];
                let _ = S::V32::load_lanes(s, Input::from_slice(&values), 15, 0b100001, {
                    S::V32::splat(s, 0.0)
                });
            }
        }
        assert!(std::panic::catch_unwind(|| enter(level, Past)).is_err());
    });
}

/// Steps and lengths whose products overflow too.
#[test]
fn copies_past_an_end_panic() {
    let fails = |n, (at, step), (to, to_step)| {
        let (from, mut into) = ([1.0f32; 20], [0.0f32; 20]);
        let output = Output::from_slice(&mut into);
        refused(|| copy(n, (Input::from_slice(&from), at, step), (output, to, to_step)))
    };
    assert!(!fails(20, (0, 1), (19, -1)));
    assert!(!fails(0, (40, 1), (40, 1)));
    for wrong in [(0, 2), (1, 1), (8, -1), (20, 0), (0, isize::MAX), (0, isize::MIN)] {
        assert!(fails(20, wrong, (0, 1)), "{wrong:?}");
        assert!(fails(20, (0, 1), wrong), "{wrong:?}");
    }
    let many = usize::MAX / 4 + 2; // times 4 it is 4 again
    assert!(fails(many, (0, 4), (0, 4)));
    assert!(fails(usize::MAX, (0, 1), (0, 1)));
    assert!(fails(usize::MAX, (0, -1), (0, -1)));
}
