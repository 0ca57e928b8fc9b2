//! The extension module `xentrs._xentrs`: arrays in, arrays out. Nothing else knows Python.
//!
//! | file | |
//! |---|---|
//! | `public` | the functions that people call: builtins in front of Python functions |
//! | `call` | a call of a loss, found in the list of losses |
//! | `options` | reads what was given for the keywords |
//! | `arrays` | reads what lies in memory: NumPy's arrays |
//! | `tensors`, `memory` | PyTorch's tensors, read and made by DLPack; the memory of new ones |
//! | `classes`, `elements` | a call over samples by classes, and one element by element |
//! | `untargeted` | a call over samples by classes without a target: an entropy, the softmax and its kin |
//! | `results` | the arrays of results |
//! | `slices` | classes in slices: states of samples, merged |
//! | `statistics` | what `CrossEntropyMeter` needs of samples, and its exact sums |
//! | `errors` | why a call has no result |
//! | `exit` | threads that are in a call while the interpreter ends |
//!
//! A call whose arrays are canonical (exact ndarrays, native and aligned, dtypes and shapes that fit;
//! C-contiguous, but for those of the logits' shape where there is a class axis) goes straight to the
//! kernels. Every other is answered with `NotImplemented` before anything is computed: the Python
//! layer then finds what is wrong, or makes the arrays canonical and calls again. It checks `axis`, whole
//! numbers that are stored as floats, and one-hot rows. Rust checks the values of all other options, and the range
//! of class indices; where a call is cut in parts, the Python layer checks that range first, for the whole.
//!
//! The order of a call is what keeps it sound. What may run Python code comes first: options are read
//! before any array is looked at. Shapes and strides are copied then (`arrays`). New arrays are made next,
//! after which all arrays must be as they were seen (`results`). The kernel runs last, without the GIL.

mod arrays;
mod call;
mod classes;
mod elements;
mod errors;
mod exit;
mod memory;
mod options;
mod public;
mod results;
mod slices;
mod statistics;
mod tensors;
mod untargeted;

use numpy::npyffi;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple};

use arrays::{Arrays, Room, Source};
use errors::answer;
use slices::{SliceArrays, mixture_of};
use tensors::Tensors;

use crate::call::batch::STATISTICS;
use crate::losses::{Evaluate, LOSSES};
use crate::parallel::process;
use crate::simd::Level;
use crate::softmax::route::MOST_CLASSES;
use crate::softmax::state;

/// The compiled kernels of xentrs; `xentrs` is what people call.
// PyO3's default is that a module needs no GIL. This one does: without it, another thread could change an array's
// shape and strides while they are copied. Nothing has been tested on a free-threaded build.
#[pymodule(gil_used = true)]
mod _xentrs {
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        process::prepare_fork();
        exit::prepare_fork();
        process::ask_for_interruption(super::errors::interruption);
        // Has NumPy's functions found now: a child that is forked while another thread finds them at its
        // first call would wait for that thread for ever.
        // SAFETY: any object may be asked whether it is an array.
        unsafe { npyffi::PyArray_CheckExact(module.py(), module.as_ptr()) };
        module.add("LOSSES", list(module.py())?)?;
        for (name, value) in [
            ("FEW_CLASSES", MOST_CLASSES),
            ("STATE_FIELDS", state::FIELDS),
            ("STATE_HELD", state::HELD),
            ("STATE_CLASS_WEIGHT", state::CLASS_WEIGHT),
            ("STATISTICS", STATISTICS),
        ] {
            module.add(name, value)?;
        }
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// The list of losses, by name.
    fn list(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let list = PyDict::new(py);
        for loss in LOSSES {
            let options: Vec<_> = loss.keywords.iter().map(|keyword| keyword.name()).collect();
            let entry = PyDict::new(py);
            entry.set_item("input", loss.input)?;
            entry.set_item("second", loss.second)?;
            entry.set_item("axis", !matches!(loss.evaluate, Evaluate::ElementByElement { .. }))?;
            entry.set_item("options", PyTuple::new(py, options)?)?;
            entry.set_item("derivatives", loss.derivatives)?;
            list.set_item(loss.name, entry)?;
        }
        Ok(list)
    }

    /// Puts a builtin of the same signature in front of a public function.
    #[pyfunction]
    #[pyo3(signature = (function, /))]
    fn public<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        super::public::builtin(function)
    }

    /// Evaluates a loss of arrays. `target` is not looked at if the loss has none. `rest` are its options in the
    /// order of `LOSSES`, then `out` and `hess_out`.
    #[pyfunction]
    #[pyo3(signature = (name, order, values, target, /, *rest))]
    fn compute<'py>(
        name: &str,
        order: usize,
        values: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        rest: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(values.py(), || call::compute::<Arrays>(name, order, values, target, rest))
    }

    /// Evaluates a loss of PyTorch's tensors, the gradient in `out`; otherwise as `compute`.
    #[pyfunction]
    #[pyo3(signature = (name, order, values, target, /, *rest))]
    fn compute_tensors<'py>(
        name: &str,
        order: usize,
        values: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        rest: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(values.py(), || call::compute::<Tensors>(name, order, values, target, rest))
    }

    /// A function of rows that is no loss: `softmax`, `log_softmax`, `logsumexp` or `entropy`, by its name.
    /// `None` stands for an option that is left out.
    #[pyfunction]
    #[pyo3(signature = (name, values, axis, temperature, base, out, /))]
    fn compute_rows<'py>(
        name: &str,
        values: &Bound<'py, PyAny>,
        axis: &Bound<'py, PyAny>,
        temperature: &Bound<'py, PyAny>,
        base: &Bound<'py, PyAny>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(values.py(), || {
            untargeted::compute_rows(name, values, [axis, temperature, base], out)
        })
    }

    /// Reduces a slice of classes to a state for each sample.
    #[pyfunction]
    #[pyo3(signature = (logits, targets, counts, weight, smooths, states, /))]
    fn slice_states<'py>(
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        counts: &Bound<'py, PyAny>,
        weight: Option<&Bound<'py, PyAny>>,
        smooths: bool,
        states: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            slices::reduce(&SliceArrays { logits, targets, counts }, weight, smooths, states)?;
            Ok(py.None().into_bound(py))
        })
    }

    /// Merges the states of other classes of the same samples into `states`.
    #[pyfunction]
    #[pyo3(signature = (states, others, /))]
    fn merge_states<'py>(
        py: Python<'py>,
        states: &Bound<'py, PyAny>,
        others: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            slices::merge_states(states, others)?;
            Ok(py.None().into_bound(py))
        })
    }

    /// Writes the loss of each sample times its factor, from merged states. Returns their sum. `mixture` is label
    /// smoothing, the number of all classes, and the factor of z-loss.
    #[pyfunction]
    #[pyo3(signature = (states, scales, counts, mixture, losses, /))]
    fn state_losses<'py>(
        py: Python<'py>,
        states: &Bound<'py, PyAny>,
        scales: &Bound<'py, PyAny>,
        counts: &Bound<'py, PyAny>,
        mixture: (f64, f64, f64),
        losses: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            let sum = slices::losses([states, scales, counts], mixture_of(mixture), losses)?;
            Ok(PyFloat::new(py, sum).into_any())
        })
    }

    /// Writes the gradient of a slice of classes, from merged states.
    #[pyfunction]
    #[pyo3(signature = (logits, targets, counts, states, scales, weight, mixture, grad, /))]
    #[allow(clippy::too_many_arguments, reason = "arrays of one call")]
    fn slice_grad<'py>(
        py: Python<'py>,
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        counts: &Bound<'py, PyAny>,
        states: &Bound<'py, PyAny>,
        scales: &Bound<'py, PyAny>,
        weight: Option<&Bound<'py, PyAny>>,
        mixture: (f64, f64, f64),
        grad: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            let arrays = SliceArrays { logits, targets, counts };
            let mixture = mixture_of(mixture);
            slices::gradient(&arrays, [states, scales], weight, mixture, grad)?;
            Ok(py.None().into_bound(py))
        })
    }

    /// Writes each sample's cross-entropy in float64, and its statistics or the class of its largest logit. `options`
    /// are those of `cross_entropy`: axis, weight, ignore_index and label_smoothing.
    #[pyfunction]
    #[pyo3(signature = (logits, target, options, losses, statistics, argmax, /))]
    fn sample_statistics<'py>(
        logits: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        options: &Bound<'py, PyTuple>,
        losses: &Bound<'py, PyAny>,
        statistics: Option<&Bound<'py, PyAny>>,
        argmax: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(logits.py(), || {
            statistics::of_samples([logits, target], options, losses, statistics, argmax)
        })
    }

    /// `sample_statistics` of a model, of more than 256 classes, and of a reference model: without its statistics, and
    /// with `KL(reference, model)`. The target is class indices. `outputs` are the model's losses and statistics, the
    /// reference's losses and likeliest classes, and the divergences.
    #[pyfunction]
    #[pyo3(signature = (logits, reference, target, options, outputs, /))]
    fn compared_statistics<'py>(
        logits: &Bound<'py, PyAny>,
        reference: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        options: &Bound<'py, PyTuple>,
        outputs: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(logits.py(), || statistics::compared([logits, reference], target, options, outputs))
    }

    /// Writes `KL(reference, model)` of each sample in float64, from the logits of both.
    #[pyfunction]
    #[pyo3(signature = (logits, reference, axis, losses, /))]
    fn sample_divergences<'py>(
        logits: &Bound<'py, PyAny>,
        reference: &Bound<'py, PyAny>,
        axis: &Bound<'py, PyAny>,
        losses: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(logits.py(), || statistics::divergences([logits, reference], axis, losses))
    }

    /// Adds each of `values`, or its exact product with its factor, to the row of `digits` that `rows` says, or to
    /// the first row. `first` is the number of the first digit. `special` counts what is not finite. Returns `None`;
    /// or does nothing, and returns the first digit that the table must have, and the one after the last.
    #[pyfunction]
    #[pyo3(signature = (digits, first, special, rows, values, factors, /))]
    fn exact_add<'py>(
        py: Python<'py>,
        digits: &Bound<'py, PyAny>,
        first: i64,
        special: &Bound<'py, PyAny>,
        rows: Option<&Bound<'py, PyAny>>,
        values: &Bound<'py, PyAny>,
        factors: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            let lacks = statistics::exact_add([digits, special], first, rows, values, factors)?;
            Ok(lacks.into_pyobject(py)?)
        })
    }

    /// Carries: all digits but the last of each row are in [0, 2^32) then.
    #[pyfunction]
    #[pyo3(signature = (digits, /))]
    fn exact_carry<'py>(digits: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = digits.py();
        answer(py, || {
            statistics::exact_carry(digits)?;
            Ok(py.None().into_bound(py))
        })
    }

    /// A loss's options in the order of `LOSSES`, numbers and words checked and of Python's own types:
    /// reading them again runs no code of the caller's. Arrays and ints are returned as they came.
    #[pyfunction]
    #[pyo3(signature = (name, /, *options))]
    fn plain_options<'py>(
        name: &str,
        options: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(options.py(), || Ok(super::options::plain(call::named(name)?, options)?.into_any()))
    }

    /// Cross-entropy of PyTorch's tensors, reduced, of class indices. Returns new tensors.
    #[pyfunction]
    #[pyo3(signature = (logits, target, weight, ignore_index, label_smoothing, reduction, with_grad, /))]
    fn quick_cross_entropy<'py>(
        logits: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        weight: &Bound<'py, PyAny>,
        ignore_index: &Bound<'py, PyAny>,
        label_smoothing: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        with_grad: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(logits.py(), || {
            let options = [weight, ignore_index, label_smoothing, reduction];
            tensors::quick_cross_entropy(logits, target, options, with_grad)
        })
    }

    /// The same for the binary cross-entropy of logits.
    #[pyfunction]
    #[pyo3(signature = (logits, target, pos_weight, reduction, with_grad, /))]
    fn quick_binary_cross_entropy<'py>(
        logits: &Bound<'py, PyAny>,
        target: &Bound<'py, PyAny>,
        pos_weight: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        with_grad: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(logits.py(), || {
            tensors::quick_binary_cross_entropy(logits, target, [pos_weight, reduction], with_grad)
        })
    }

    /// A new tensor of another one's dtype, and of its shape and order of axes, or of this shape.
    #[pyfunction]
    #[pyo3(signature = (like, shape, /))]
    fn new_tensor<'py>(
        py: Python<'py>,
        like: &Bound<'py, PyAny>,
        shape: Option<Vec<usize>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        answer(py, || {
            Ok(tensors::new_like(py, &Tensors::view(like, &mut Room::new())?, shape.as_deref())?)
        })
    }

    /// Whether a tensor is the one number 1, on the CPU.
    #[pyfunction]
    #[pyo3(signature = (tensor, /))]
    fn is_one(tensor: &Bound<'_, PyAny>) -> bool {
        tensors::is_one(tensor)
    }

    /// Learns from the class of PyTorch's tensors how to read them.
    #[pyfunction]
    #[pyo3(signature = (tensor, /))]
    fn use_tensors(tensor: &Bound<'_, PyAny>) -> PyResult<()> {
        tensors::use_tensors(tensor)
    }

    /// Leaves large calls to PyTorch's threads, which must be there.
    #[pyfunction]
    fn join_threads() {
        process::join_team();
    }

    /// Waits, at most for a second, until no other thread is in this module: before the interpreter ends.
    #[pyfunction]
    fn wait_for_calls(py: Python<'_>) {
        exit::wait_for_calls(py);
    }

    /// Sets the number of threads that large calls use.
    #[pyfunction]
    #[pyo3(signature = (n, /))]
    fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
        match super::options::exact_int(n) {
            Ok(n) => Ok(process::set_num_threads(n)?),
            Err(_) => {
                let kind = n.get_type().name()?;
                let message = format!("the number of threads must be an int, not {n} ({kind})");
                Err(PyTypeError::new_err(message))
            }
        }
    }

    /// The number of threads that large calls use.
    #[pyfunction]
    fn get_num_threads() -> PyResult<usize> {
        Ok(process::get_num_threads()?)
    }

    /// Version, instruction set and threads, and where each is from.
    #[pyfunction]
    fn config(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let (level, source) = process::level()?;
        let simd = PyDict::new(py);
        simd.set_item("level", level.name())?;
        let available: Vec<_> = Level::available().iter().map(|level| level.name()).collect();
        simd.set_item("available", available)?;
        simd.set_item("source", source)?;
        let (count, source) = process::thread_config()?;
        let threads = PyDict::new(py);
        threads.set_item("count", count)?;
        threads.set_item("source", source)?;
        let config = PyDict::new(py);
        config.set_item("version", env!("CARGO_PKG_VERSION"))?;
        config.set_item("simd", simd)?;
        config.set_item("threads", threads)?;
        Ok(config)
    }
}
