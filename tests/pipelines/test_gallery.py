"""Each entry of the gallery runs, keeps what its page promises, and its page shows what it does."""

import importlib.util
import re
import sys

import numpy as np
import pytest

from gallery import PAGES, SCRIPTS, assert_page, rows, run

NEEDED = "runs where the libraries of data pipelines are: make test-pipelines"
sklearn = pytest.importorskip("sklearn", reason=NEEDED)
linear_model = pytest.importorskip("sklearn.linear_model", reason=NEEDED)
checks = pytest.importorskip("sklearn.utils.estimator_checks", reason=NEEDED)
threadpoolctl = pytest.importorskip("threadpoolctl", reason=NEEDED)
pytest.importorskip("matplotlib", reason=NEEDED)
pytest.importorskip("xgboost", reason=NEEDED)
pytest.importorskip("lightgbm", reason=NEEDED)

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="a checkout without examples/")


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep BLAS to one thread: the matrices are small, and other tests run beside these."""
    with threadpoolctl.threadpool_limits(limits=1):
        yield


def load(name):
    """Import a script of the gallery, for its functions."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where `pickle` and `dataclass` look
    spec.loader.exec_module(module)
    return module


def test_every_entry_has_its_page_and_its_test():
    names = {path.stem for path in SCRIPTS.glob("*.py")} - {"drawing"}
    assert names == {path.stem for path in PAGES.glob("*.md")} - {"index"}
    assert names == {path.stem for path in PAGES.glob("*.svg")}
    index = (PAGES / "index.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.md\)", index)) == names
    tested = {name.removeprefix("test_") for name in globals()}
    assert names - tested == {"jax_loss"}  # tests/others/test_gallery_jax.py


def test_perplexity(tmp_path):
    """The quantised model is a little worse, and the figures fit to each other."""
    printed, picture = run("perplexity", tmp_path)
    assert_page("perplexity", printed, picture)
    scores = rows(printed)
    loss, error, perplexity, bits, accuracy = scores["float32"]
    worse = scores["4 bits"]
    assert perplexity == pytest.approx(np.exp(loss), rel=1e-3)
    assert bits == pytest.approx(loss / np.log(2), abs=2e-4)  # one byte a character
    assert perplexity < 8
    assert accuracy > 0.45
    assert 0 < worse[0] - loss < 0.1
    pattern = r"loss +\+(\S+) \+- (\S+)\n +KL +(\S+), .*same top +(\S+)"
    delta, delta_error, kl, top = map(float, re.search(pattern, printed, re.DOTALL).groups())
    assert delta == pytest.approx(worse[0] - loss, abs=2e-4)
    assert 0 < delta_error < error / 3
    assert delta > 3 * delta_error
    assert 0.005 < kl < 0.1
    assert 0.8 < top < 1


def test_stored_logits_are_evaluated_whatever_the_batches(tmp_path):
    """The same bits for batches of any size, and the values of SciPy on the whole arrays."""
    from scipy.special import log_softmax

    module = load("perplexity")
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(1000, 20))).astype(np.float16)
    other = (logits + rng.normal(size=logits.shape) / 4).astype(np.float16)
    target = rng.integers(0, 20, 1000)
    files = tmp_path / "logits.npy", tmp_path / "reference.npy"
    for file, array in zip(files, (logits, other), strict=True):
        np.save(file, array)
    whole = module.evaluate(files[0], target, files[1], rows=1000).compute()
    assert module.evaluate(files[0], target, files[1], rows=7).compute() == whole
    model, reference = (log_softmax(x.astype(float), axis=1) for x in (logits, other))
    assert whole.loss == pytest.approx(-model[np.arange(1000), target].mean(), rel=1e-6)
    kl = (np.exp(reference) * (reference - model)).sum(axis=1)
    assert whole.kl == pytest.approx(kl.mean(), rel=1e-5)
    assert whole.same_top == (logits.argmax(axis=1) == other.argmax(axis=1)).mean()


def test_boosting(tmp_path):
    """Smoothing keeps LightGBM's held-out loss at the last round low, at no cost in accuracy."""
    printed, picture = run("boosting", tmp_path)
    assert_page("boosting", printed, picture)
    losses = {
        (name, smoothing): (least, last, accuracy)
        for line in printed.splitlines()
        if (found := re.match(r"(\w+) +(0\.\d\d) +(\S+) +(\S+) +(\S+)$", line))
        for name, smoothing, least, last, accuracy in [(found[1], *map(float, found.groups()[1:]))]
    }
    assert len(losses) == 6
    plain, smoothed = losses["LightGBM", 0.0], losses["LightGBM", 0.02]
    assert plain[1] > 1.2 * plain[0], "without smoothing LightGBM should overfit"
    assert smoothed[1] < 0.8 * plain[1]
    assert smoothed[0] < 1.1 * plain[0]
    assert smoothed[2] > plain[2] - 0.01
    # XGBoost's own penalty suffices here, as the page says.
    assert abs(losses["XGBoost", 0.02][1] - losses["XGBoost", 0.0][1]) < 0.02


def test_distillation(tmp_path):
    printed, picture = run("distillation", tmp_path)
    assert_page("distillation", printed, picture)
    scores = rows(printed)
    alone, taught = scores["student, 200 labels"], scores["student, teacher's top 3"]
    assert taught[0] < 0.75 * alone[0]
    assert taught[1] > alone[1] + 0.02
    assert taught[1] > scores["student, all 1297 labels"][1] - 0.01  # as good as the labels
    assert taught[1] > scores["teacher"][1] - 0.03


def test_stored_teacher_is_the_teacher(tmp_path):
    """Stored and read again, the classes kept have the teacher's probabilities, scaled."""
    module = load("distillation")
    teacher = np.random.default_rng(0).dirichlet(np.full(10, 0.2), 50)
    module.store(teacher, tmp_path / "teacher.npz")
    indices, probabilities = module.read(tmp_path / "teacher.npz")
    assert indices.shape == probabilities.shape == (50, module.TOP)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    least_kept = np.take_along_axis(teacher, indices, axis=1).min(axis=1)
    assert (least_kept == np.sort(teacher, axis=1)[:, -module.TOP]).all()
    dense = np.zeros_like(teacher)
    np.put_along_axis(dense, indices, probabilities, axis=1)
    kept = np.where(dense > 0, teacher, 0)
    np.testing.assert_allclose(dense, kept / kept.sum(axis=1, keepdims=True), rtol=2e-3)


def test_temperature(tmp_path):
    """A temperature fitted on some images lowers the loss and the calibration error of others."""
    printed, picture = run("temperature", tmp_path)
    assert_page("temperature", printed, picture)
    scores = rows(printed)
    (_, loss, error), (temperature, fitted_loss, fitted_error) = (
        scores["as trained"],
        scores["calibrated"],
    )
    assert temperature > 2
    assert fitted_loss < 0.5 * loss
    assert fitted_error < 0.5 * error


def test_fitted_temperature_is_the_best():
    """Against a fine grid of SciPy's log-softmax, for logits that were made too large by 3."""
    from scipy.special import log_softmax

    module = load("temperature")
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 5))
    target = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found = module.fit_temperature(3 * logits, target)
    assert found == pytest.approx(3, rel=0.06)
    grid = found * np.linspace(0.98, 1.02, 401)
    losses = [-log_softmax(3 * logits / t, axis=1)[range(4000), target].mean() for t in grid]
    assert grid[np.argmin(losses)] == pytest.approx(found, rel=2e-4)


def test_softmax_regression(tmp_path):
    printed, picture = run("softmax_regression", tmp_path)
    assert_page("softmax_regression", printed, picture)
    pattern = r"^l[12] +\S+ +(\d+) of 640 +\S+ +(\S+)$"
    table = re.findall(pattern, printed, re.MULTILINE)
    assert len(table) == 2
    zeros = [int(zero) for zero, _ in table]
    assert zeros[1] > 300 > 60 > zeros[0]  # of 640; a few pixels are white in all images
    assert all(float(accuracy) > 0.94 for _, accuracy in table)


@pytest.fixture(scope="module")
def softmax_regression():
    return load("softmax_regression").SoftmaxRegression


@pytest.mark.parametrize("penalty", ["l2", "l1", None])
def test_softmax_regression_is_an_estimator(softmax_regression, penalty):
    """Scikit-learn's own check. It skips what needs an option of the environment, and says so."""
    done = checks.check_estimator(softmax_regression(penalty), on_skip=None)
    passed = {check["check_name"] for check in done if check["status"] == "passed"}
    skipped = {check["check_name"] for check in done} - passed
    assert len(passed) > 40
    assert skipped <= {"check_array_api_input"}
    assert "check_sample_weight_equivalence_on_dense_data" in passed


@pytest.fixture(scope="module")
def iris():
    from sklearn.datasets import load_iris

    samples, target = load_iris(return_X_y=True)
    return (samples - samples.mean(axis=0)) / samples.std(axis=0), target


def objective(model, samples, target, penalty, strength, weight):
    """Evaluate LogisticRegression's objective with SciPy alone."""
    from scipy.special import log_softmax

    log_p = log_softmax(samples @ model.coef_.T + model.intercept_, axis=1)
    loss = -(weight * log_p[np.arange(len(target)), target]).sum()
    size = 0.5 * np.square(model.coef_).sum() if penalty == "l2" else np.abs(model.coef_).sum()
    return strength * loss + size


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_softmax_regression_is_logistic_regression(
    softmax_regression, iris, penalty, strength, weighted
):
    samples, target = iris
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 2, len(target)) if weighted else np.ones(len(target))
    options = {"solver": "lbfgs"} if penalty == "l2" else {"solver": "saga", "l1_ratio": 1}
    theirs = linear_model.LogisticRegression(
        C=strength, tol=1e-9, max_iter=200_000, random_state=0, **options
    ).fit(samples, target, weight)
    ours = softmax_regression(penalty, C=strength, tol=1e-9).fit(samples, target, weight)

    arguments = samples, target, penalty, strength, weight
    value = objective(ours, *arguments)
    assert ours.objective_ == pytest.approx(value, rel=1e-12)
    assert value <= objective(theirs, *arguments) * (1 + 1e-9)
    assert value == pytest.approx(objective(theirs, *arguments), rel=1e-6)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-4)
    # Intercepts have no penalty: only their differences are determined.
    np.testing.assert_allclose(
        ours.intercept_ - ours.intercept_.mean(),
        theirs.intercept_ - theirs.intercept_.mean(),
        atol=2e-4,
    )
    np.testing.assert_allclose(
        ours.predict_proba(samples), theirs.predict_proba(samples), atol=1e-4
    )


def test_softmax_regression_of_two_classes(softmax_regression):
    """Scikit-learn has one row of weights for two classes: w = w1 - w0, with half the penalty."""
    from sklearn.datasets import load_breast_cancer

    samples, target = load_breast_cancer(return_X_y=True)
    samples = (samples - samples.mean(axis=0)) / samples.std(axis=0)
    theirs = linear_model.LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000).fit(samples, target)
    ours = softmax_regression(C=0.5, tol=1e-9).fit(samples, target)
    np.testing.assert_allclose(ours.coef_[1] - ours.coef_[0], theirs.coef_[0], atol=1e-5)
    np.testing.assert_allclose(
        ours.decision_function(samples), theirs.decision_function(samples), atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"penalty": "elastic"}, "penalty must be"), ({"C": 0}, "C must be above 0, not 0")],
)
def test_softmax_regression_names_wrong_options(softmax_regression, iris, options, message):
    with pytest.raises(ValueError, match=message):
        softmax_regression(**options).fit(*iris)


def test_gradient_clipping(tmp_path):
    """At the same high learning rate the network learns with clipping alone."""
    printed, picture = run("gradient_clipping", tmp_path)
    # A training that diverges enlarges each rounding error.
    assert_page("gradient_clipping", printed, picture, relative=0.5)
    scores = rows(printed)
    assert scores["as they are"][-1] < 0.3
    assert scores["as they are"][-2] > 2
    assert scores["clipped"][-1] > 0.9
    assert scores["clipped"][-2] < 0.5


def test_gradients_of_the_recurrent_network():
    """Against differences of the loss, in each weight matrix."""
    import xentrs

    module = load("gradient_clipping")
    rng = np.random.default_rng(0)
    weights, images = module.start(seed=0), rng.random((6, 8, 8))
    target = rng.integers(0, 10, 6)
    logits, states = module.forward(weights, images)
    _, grad = xentrs.cross_entropy_with_grad(logits, target)
    gradients = module.backward(weights, images, states, grad)
    for name, value in weights.items():
        direction = rng.normal(size=value.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = weights | {name: value + step * direction}
            ends.append(xentrs.cross_entropy(module.forward(moved, images)[0], target))
        expected = (ends[0] - ends[1]) / 2e-5
        assert np.vdot(gradients[name], direction) == pytest.approx(expected, rel=1e-6), name


def test_clipped_gradients_keep_their_direction():
    module = load("gradient_clipping")
    rng = np.random.default_rng(0)
    for limit in (0.5, 1e9):
        gradients = [rng.normal(size=shape) for shape in ((3, 4), (5,))]
        before = np.concatenate([one.ravel() for one in gradients])
        norm = module.clip_by_norm(gradients, limit)
        after = np.concatenate([one.ravel() for one in gradients])
        assert norm == pytest.approx(np.linalg.norm(before))
        assert np.linalg.norm(after) == pytest.approx(min(norm, limit))
        np.testing.assert_allclose(after / np.linalg.norm(after), before / norm)


def test_noisy_labels(tmp_path):
    """Generalised cross-entropy beats plain cross-entropy, stopped early or not."""
    printed, picture = run("noisy_labels", tmp_path)
    assert_page("noisy_labels", printed, picture)
    table = re.findall(r"(\d+)% +(\S+) +(\S+) +(\S+)$", printed, re.MULTILINE)
    scores = {int(share): list(map(float, row)) for share, *row in table}
    assert sorted(scores) == [0, 10, 20, 30, 40, 50]
    stopped, plain, robust = scores[40]
    assert robust > plain + 0.06
    assert robust > stopped + 0.005
    assert abs(scores[0][2] - scores[0][1]) < 0.02  # no cost where all labels are right


def test_corrupted_labels():
    module = load("noisy_labels")
    target = np.arange(1000) % 10
    noisy = module.corrupt(target, 0.4, np.random.default_rng(0))
    assert (noisy != target).sum() == 400
    assert set(noisy) == set(range(10))


def test_tree_impurity(tmp_path):
    """Each split of scikit-learn's tree is a best one, and the same one but for ties."""
    printed, picture = run("tree_impurity", tmp_path)
    assert_page("tree_impurity", printed, picture)
    table = re.findall(r"^ +(\d+) +\d+ +\S+ +(\S+) +(\S+)   \w.*", printed, re.MULTILINE)
    assert len(table) >= 5
    assert all(theirs == best for _, theirs, best in table)


@pytest.mark.parametrize("name", ["load_iris", "load_wine", "load_breast_cancer", "load_digits"])
def test_splits_of_whole_trees(name):
    """At every node no split is better than scikit-learn's; where none is as good, it is ours."""
    from sklearn import datasets
    from sklearn.tree import DecisionTreeClassifier

    module = load("tree_impurity")
    samples, target = getattr(datasets, name)(return_X_y=True)
    classes = target.max() + 1
    model = DecisionTreeClassifier(criterion="entropy", random_state=0).fit(samples, target)
    tree, path = model.tree_, model.decision_path(samples).toarray().astype(bool)
    same = 0
    inner = np.flatnonzero(tree.children_left >= 0)
    for node in inner:
        here = path[:, node]
        found = module.splits(samples[here], target[here], classes)
        feature, threshold, best = found.best()
        theirs = found.of(tree.feature[node], tree.threshold[node])
        assert theirs == pytest.approx(best, abs=1e-9)
        children = tree.children_left[node], tree.children_right[node]
        sizes = tree.n_node_samples[[*children]]
        assert theirs == pytest.approx(
            (sizes * tree.impurity[[*children]]).sum() / sizes.sum(), abs=1e-12
        )
        alone = (found.impurity < best + 1e-9).sum() == 1
        if alone:
            assert feature == tree.feature[node]
            assert threshold == pytest.approx(tree.threshold[node], rel=1e-6)
            same += 1
    assert same >= 1
