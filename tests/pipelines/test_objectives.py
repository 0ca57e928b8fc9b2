"""Objectives and metrics of `xentrs.xgboost`, `xentrs.lightgbm` and `xentrs.catboost`.

What a library's own objective does, ours does: the same trees. What it cannot do is held against
the formula, written out here and differentiated numerically.
"""

import copy
import doctest
import importlib
import json
import pickle
import re

import numpy as np
import pytest

import xentrs

datasets = pytest.importorskip("sklearn.datasets", reason="runs where scikit-learn is")
base = pytest.importorskip("sklearn.base", reason="the same package")
model_selection = pytest.importorskip("sklearn.model_selection", reason="the same package")
NEEDED = "runs where the libraries of boosted trees are: make test-pipelines"
xgboost = pytest.importorskip("xgboost", reason=NEEDED)
lightgbm = pytest.importorskip("lightgbm", reason=NEEDED)
catboost = pytest.importorskip("catboost", reason=NEEDED)

LIBRARIES = ("xgboost", "lightgbm", "catboost")
MODULES = {name: importlib.import_module(f"xentrs.{name}") for name in LIBRARIES}
ROUNDS = 20
every_library = pytest.mark.parametrize("library", LIBRARIES)
weighted = pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])

DIGITS = datasets.load_digits(return_X_y=True)
CANCER = datasets.load_breast_cancer(return_X_y=True)


def imbalanced(classes):
    """Return a data set in which the last class is rare."""
    shares = [0.9, 0.1] if classes == 2 else [0.6, 0.3, 0.08, 0.02]
    return datasets.make_classification(
        1500, 8, n_informative=5, n_classes=classes, weights=shares, random_state=0
    )


TABLES = {"digits": DIGITS, "imbalanced": imbalanced(4)}
PAIRS = {"cancer": CANCER, "imbalanced": imbalanced(2)}
every_table = pytest.mark.parametrize("table", TABLES)
every_pair = pytest.mark.parametrize("table", PAIRS)


def weights(y, weighted):
    return np.random.default_rng(0).uniform(0.5, 2, len(y)) if weighted else None


# XGBoost


def structure(booster):
    """Return each tree as nested tuples of features and thresholds."""

    def of(node):
        if "leaf" in node:
            return "leaf"
        return node["split"], node["split_condition"], *(of(child) for child in node["children"])

    return [of(json.loads(tree)) for tree in booster.get_dump(dump_format="json")]


def agree(ours, theirs, data):
    """Assert that the margins of two boosters are the same to float32's rounding."""
    mine, right = (booster.predict(data, output_margin=True) for booster in (ours, theirs))
    assert np.abs(mine - right).max() <= 2e-6 * max(1, np.abs(right).max())


@weighted
@every_table
@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_xgboost_classes(table, weighted, strategy):
    x, y = TABLES[table]
    weight, objective = weights(y, weighted), xentrs.xgboost.softmax()
    data = xgboost.DMatrix(x, y, weight=weight)
    params = {"num_class": int(y.max()) + 1, "nthread": 2, "multi_strategy": strategy}
    theirs = xgboost.train(params | {"objective": "multi:softprob"}, data, ROUNDS)
    ours = xgboost.train(params | objective.params(y, weight), data, ROUNDS, obj=objective)
    agree(ours, theirs, data)
    if strategy == "one_output_per_tree":  # the other kind of tree cannot be dumped
        trees = structure(theirs)
        assert len(trees) == ROUNDS * params["num_class"]
        assert structure(ours) == trees
    np.testing.assert_allclose(ours.predict(data), theirs.predict(data), atol=1e-6)
    raw = ours.predict(data, output_margin=True)
    np.testing.assert_allclose(objective.predict_proba(raw), ours.predict(data), atol=1e-6)


@weighted
@every_pair
def test_xgboost_binary(table, weighted):
    x, y = PAIRS[table]
    weight, objective = weights(y, weighted), xentrs.xgboost.binary()
    data = xgboost.DMatrix(x, y, weight=weight)
    params = {"objective": "binary:logistic", "base_score": 0.5, "nthread": 2}
    theirs = xgboost.train(params, data, ROUNDS)
    ours = xgboost.train({"nthread": 2} | objective.params(y), data, ROUNDS, obj=objective)
    assert structure(ours) == structure(theirs)
    agree(ours, theirs, data)
    # Without `objective`, XGBoost reads the base score as a margin.
    plain = xgboost.train({"base_score": 0, "nthread": 2}, data, ROUNDS, obj=objective)
    agree(plain, theirs, data)
    raw = ours.predict(data, output_margin=True)
    np.testing.assert_allclose(objective.predict_proba(raw)[:, 1], ours.predict(data), atol=1e-6)


@weighted
@pytest.mark.parametrize("classes", [2, 10])
def test_xgboost_classifier(classes, weighted):
    x, y = CANCER if classes == 2 else DIGITS
    objective = xentrs.xgboost.binary() if classes == 2 else xentrs.xgboost.softmax()
    weight = weights(y, weighted)
    params = objective.params(y, weight) | {"objective": objective, "n_estimators": 5}
    ours = xgboost.XGBClassifier(**params).fit(x, y, sample_weight=weight)
    base = {"base_score": 0.5} if classes == 2 else {}
    theirs = xgboost.XGBClassifier(n_estimators=5, **base).fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    agree(ours.get_booster(), theirs.get_booster(), xgboost.DMatrix(x))


def test_xgboost_soft_labels():
    """Labels of two axes are probabilities: those of one-hot rows are the class indices."""
    x, y = DIGITS
    objective = xentrs.xgboost.softmax()
    hard, soft = (xgboost.DMatrix(x, labels) for labels in (y, np.eye(10)[y]))
    params = objective.params(y)
    one = xgboost.train(params, hard, 5, obj=objective)
    two = xgboost.train(objective.params(np.eye(10)[y]), soft, 5, obj=objective)
    agree(one, two, hard)
    np.testing.assert_allclose(
        objective.predict_proba(two.predict(hard)), one.predict(hard), atol=1e-6
    )


# LightGBM


def text(booster):
    """Return the text of each tree."""
    whole = booster.model_to_string()
    return re.split(r"Tree=\d+\n", whole[: whole.index("end of trees")])[1:]


QUIET = {
    "verbose": -1,
    "num_threads": 2,
    "deterministic": True,
    "boost_from_average": False,
    "seed": 0,
}


@weighted
@every_table
def test_lightgbm_classes(table, weighted):
    x, y = TABLES[table]
    weight, objective = weights(y, weighted), xentrs.lightgbm.softmax()
    params = QUIET | {"num_class": int(y.max()) + 1}
    initial = objective.params(y, weight)

    def train(objective):
        data = lightgbm.Dataset(x, y, weight=weight, **initial)
        return lightgbm.train(params | {"objective": objective}, data, 10)

    theirs, ours = train("multiclass"), train(objective)
    assert len(text(theirs)) == 10 * params["num_class"]
    assert text(ours) == text(theirs)
    raw = ours.predict(x, raw_score=True) + initial["init_score"]
    right = theirs.predict(x, raw_score=True) + initial["init_score"]
    np.testing.assert_allclose(
        objective.predict_proba(raw), np.exp(right) / np.exp(right).sum(1)[:, None]
    )

    arguments = {k: v for k, v in QUIET.items() if k != "num_threads"}
    model = lightgbm.LGBMClassifier(objective=objective, n_estimators=10, n_jobs=2, **arguments)
    model.fit(x, y, sample_weight=weight, **initial)
    assert text(model.booster_) == text(theirs)


@weighted
@every_pair
@pytest.mark.parametrize("start", ["zero", "log-odds"])
def test_lightgbm_binary(table, weighted, start):
    x, y = PAIRS[table]
    weight, objective = weights(y, weighted), xentrs.lightgbm.binary()
    initial = objective.params(y, weight) if start == "log-odds" else {}

    def train(objective):
        data = lightgbm.Dataset(x, y, weight=weight, **initial)
        return lightgbm.train(QUIET | {"objective": objective}, data, ROUNDS)

    assert text(train(objective)) == text(train("binary"))


def halves(x, y, weighted):
    """Return samples, labels and weights of two halves of a data set."""
    weight = weights(y, weighted)
    even = np.arange(len(y)) % 2 == 0
    return [(x[half], y[half], weight[half] if weighted else None) for half in (even, ~even)]


@weighted
@pytest.mark.parametrize("table", ["digits", "imbalanced", "cancer", "imbalanced pairs"])
def test_lightgbm_initial_scores_of_other_data(table, weighted):
    """What early stopping reads is the loss of the predictions, with the scores of `rows=`."""
    pairs = {"cancer": CANCER, "imbalanced pairs": PAIRS["imbalanced"]}
    module, two = xentrs.lightgbm, table in pairs
    (x, y, w), (x_valid, y_valid, w_valid) = halves(*(pairs | TABLES)[table], weighted)
    objective = module.binary() if two else module.softmax()
    metric = module.binary_metric if two else module.softmax_metric
    ours, theirs = objective.params(y, w), objective.params(y, w, rows=len(y_valid))
    initial = theirs["init_score"]
    assert initial.shape == (len(y_valid), *ours["init_score"].shape[1:])
    assert initial.flags.f_contiguous
    assert (initial == ours["init_score"][0]).all()
    settings = QUIET | {"objective": objective, "num_class": 1 if two else int(y.max()) + 1}
    settings |= {"learning_rate": 0.5, "num_leaves": 8}

    def losses_of(raw):
        """Return the loss of margins, and that of the probabilities made of them."""
        total = len(y_valid) if w_valid is None else w_valid.sum()
        if two:
            options = {"weight": w_valid, "denominator": total}
            shares = objective.predict_proba(raw)[:, 1]
            yield xentrs.binary_cross_entropy_with_logits(raw, y_valid, **options)
            yield xentrs.binary_cross_entropy(shares, y_valid, **options)
        else:
            yield xentrs.cross_entropy(raw, y_valid, sample_weight=w_valid)
            shares = objective.predict_proba(raw)
            yield xentrs.log_loss(shares, y_valid, sample_weight=w_valid)

    def train(**options):
        seen = {}
        data = lightgbm.Dataset(x, y, weight=w, **ours)
        valid = data.create_valid(x_valid, y_valid, weight=w_valid, **options)
        stops = lightgbm.early_stopping(3, verbose=False)
        callbacks = [stops, lightgbm.record_evaluation(seen)]
        return lightgbm.train(
            settings, data, 40, valid_sets=[valid], feval=metric, callbacks=callbacks
        ), seen["valid_0"]["cross_entropy"]

    booster, reported = train(**theirs)
    assert len(reported) < 40, "it should stop early"
    assert booster.best_iteration == np.argmin(reported) + 1
    assert booster.best_score["valid_0"]["cross_entropy"] == min(reported)
    for rounds, loss in enumerate(reported[: booster.best_iteration], 1):  # later trees are gone
        raw = booster.predict(x_valid, raw_score=True, num_iteration=rounds) + initial
        for found in losses_of(raw):
            assert found == pytest.approx(loss, rel=1e-6)
    _, without = train()
    assert without[0] != pytest.approx(reported[0], rel=1e-6)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@pytest.mark.parametrize("classes", [2, 4])
def test_lightgbm_classifier_with_initial_scores_of_other_data(classes):
    module = xentrs.lightgbm
    (x, y, _), (x_valid, y_valid, _) = halves(*imbalanced(classes), False)
    objective = module.binary() if classes == 2 else module.softmax()
    metric = module.binary_metric if classes == 2 else module.softmax_metric
    initial = objective.params(y, rows=len(y_valid))["init_score"]
    settings = {"n_estimators": 5, "verbose": -1, "n_jobs": 2, "metric": "None"}
    model = lightgbm.LGBMClassifier(objective=objective, **settings)
    model.fit(
        x,
        y,
        eval_set=[(x_valid, y_valid)],
        eval_init_score=[initial],
        eval_metric=metric,
        **objective.params(y),
    )
    raw = model.predict_proba(x_valid, raw_score=True) + initial
    losses = {2: xentrs.binary_cross_entropy_with_logits, 4: xentrs.cross_entropy}
    (reported,) = model.best_score_.values()
    assert reported == {"cross_entropy": pytest.approx(losses[classes](raw, y_valid), rel=1e-6)}


def test_lightgbm_training_is_continued_by_initial_scores():
    x, y = imbalanced(4)
    objective = xentrs.lightgbm.softmax()
    settings = {"objective": objective, "num_class": 4, "verbose": -1, "num_threads": 2}
    initial = objective.params(y)["init_score"]

    def train(scores, rounds):
        model = lightgbm.train(settings, lightgbm.Dataset(x, y, init_score=scores), rounds)
        return scores + model.predict(x, raw_score=True)

    in_two = train(train(initial, 3), 4)
    np.testing.assert_allclose(in_two, train(initial, 7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["softmax", "binary"])
def test_rows_of_initial_scores(kind):
    teacher = np.full((9, 3), [0.2, 0.3, 0.5]) if kind == "softmax" else np.full(9, 0.2)
    for options in ({}, {"label_smoothing": 0.1}, {"weight": [1, 2]}, {"teacher": teacher}):
        objective = getattr(xentrs.lightgbm, kind)(**options)
        y = np.array([0, 1, 1, 1])
        own = objective.params(y)["init_score"]
        for rows in (0, 1, 4, np.int64(7)):
            found = objective.params(y, rows=rows)["init_score"]
            np.testing.assert_array_equal(found, np.tile(own[:1], (rows, *[1] * (own.ndim - 1))))
            assert found.flags.f_contiguous
            assert found.dtype == np.float64
        with pytest.raises(ValueError, match="rows must be at least 0, not -1"):
            objective.params(y, rows=-1)
        for wrong, name in ((y, "ndarray"), (2.0, "float"), ("4", "str")):
            with pytest.raises(TypeError, match=rf"rows must be a number of rows.*not {name}"):
                objective.params(y, rows=wrong)
        with pytest.raises(TypeError):
            objective.params(y, None, 3)


def test_lightgbm_scores_in_columns_are_not_transposed():
    objective = xentrs.lightgbm.softmax()
    scores = np.asfortranarray(np.random.default_rng(0).normal(size=(50, 4)))
    for array in objective(np.zeros(50), scores):
        assert array.flags.f_contiguous
        assert array.dtype == np.float32


# CatBoost

SAME = {
    "verbose": 0,
    "allow_writing_files": False,
    "random_seed": 0,
    "leaf_estimation_iterations": 1,
    "leaf_estimation_method": "Newton",
    "learning_rate": 0.1,
    "bootstrap_type": "No",
    "random_strength": 0,
    "thread_count": 2,
}


def test_class_weights_of_the_libraries():
    """Their own do nothing beside a custom objective: `weight` gives the trees they would."""
    x, y = PAIRS["imbalanced"]
    data = xgboost.DMatrix(x, y)

    def of_xgboost(objective, **params):
        params |= objective.params(y) | {"nthread": 2}
        return xgboost.train(params, data, ROUNDS, obj=objective)

    binary = xentrs.xgboost.binary
    assert structure(of_xgboost(binary(), scale_pos_weight=7.0)) == structure(of_xgboost(binary()))
    params = {"objective": "binary:logistic", "base_score": 0.5, "nthread": 2}
    theirs = xgboost.train(params | {"scale_pos_weight": 7.0}, data, ROUNDS)
    ours = of_xgboost(binary(weight=[1.0, 7.0]))
    assert structure(ours) == structure(theirs)
    agree(ours, theirs, data)

    def of_lightgbm(objective, **params):
        params |= QUIET | {"objective": objective}
        return lightgbm.train(params, lightgbm.Dataset(x, y), ROUNDS)

    binary = xentrs.lightgbm.binary
    negative, positive = np.bincount(y)
    for params, s in (
        ({"scale_pos_weight": 7.0}, 7.0),
        ({"is_unbalance": True}, negative / positive),
    ):
        assert text(of_lightgbm(binary(), **params)) == text(of_lightgbm(binary()))
        ours = of_lightgbm(binary(weight=[1.0, s]))
        assert text(ours) == text(of_lightgbm("binary", **params))


@weighted
def test_catboost_binary(weighted):
    x, y = CANCER
    weight, objective = weights(y, weighted), xentrs.catboost.binary()
    arguments = SAME | {"iterations": ROUNDS, "boost_from_average": False}
    ours = catboost.CatBoostClassifier(
        loss_function=objective, eval_metric="Logloss", **arguments, **objective.params(y)
    ).fit(x, y, sample_weight=weight)
    theirs = catboost.CatBoostClassifier(loss_function="Logloss", **arguments)
    theirs.fit(x, y, sample_weight=weight)
    mine, right = (m.predict(x, prediction_type="RawFormulaVal") for m in (ours, theirs))
    np.testing.assert_allclose(mine, right, rtol=0, atol=2e-15)


@weighted
def test_catboost_classes(weighted):
    x, y = (part[:300] for part in DIGITS)
    weight, objective = weights(y, weighted), xentrs.catboost.softmax()
    arguments = SAME | {"iterations": 3, "depth": 3}
    ours = catboost.CatBoostClassifier(
        loss_function=objective,
        eval_metric=xentrs.catboost.softmax_metric,
        **arguments,
        **objective.params(y),
    ).fit(x, y, sample_weight=weight, eval_set=(x, y))
    theirs = catboost.CatBoostClassifier(loss_function="MultiClass", **arguments)
    theirs.fit(x, y, sample_weight=weight)
    mine, right = (m.predict(x, prediction_type="RawFormulaVal") for m in (ours, theirs))
    np.testing.assert_allclose(mine, right, rtol=0, atol=2e-15)
    (losses,) = ours.get_evals_result()["validation"].values()
    assert losses[-1] == pytest.approx(xentrs.cross_entropy(mine, y), rel=1e-6)


def catboost_model(kind, y, metric, **options):
    """Return a small model of CatBoost with an objective and its parameters."""
    objective = getattr(xentrs.catboost, kind)(label_smoothing=0.05)
    return catboost.CatBoostClassifier(
        loss_function=objective,
        eval_metric=metric,
        iterations=4,
        depth=3,
        verbose=0,
        allow_writing_files=False,
        thread_count=1,
        **options | objective.params(y),
    )


IRIS = datasets.load_iris(return_X_y=True)
OF_CATBOOST = [
    *(("binary", metric) for metric in ("Logloss", "AUC", xentrs.catboost.binary_metric)),
    *(("softmax", metric) for metric in ("MultiClass", "Accuracy", xentrs.catboost.softmax_metric)),
]


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
@pytest.mark.parametrize(("kind", "metric"), OF_CATBOOST)
def test_catboost_predicts_labels(kind, metric, dtype):
    """With `params`, as with a built-in loss: `predict`, `score`, and scikit-learn around them."""
    x, y = CANCER if kind == "binary" else IRIS
    if kind == "softmax" and dtype == np.bool_:
        dtype = np.uint8  # bools are two classes
    y = y.astype(dtype)
    model = catboost_model(kind, y, metric).fit(x, y)
    assert model.classes_.tolist() == [*range(2 if kind == "binary" else 3)]
    raw = model.predict(x, prediction_type="RawFormulaVal")
    shares = model.get_params()["loss_function"].predict_proba(raw)
    np.testing.assert_allclose(model.predict_proba(x), shares, rtol=1e-12)
    predicted = model.predict(x).ravel()
    np.testing.assert_array_equal(predicted, shares.argmax(axis=1))
    assert model.score(x, y) == pytest.approx(np.mean(predicted == y))
    assert model.score(x, y) > 0.9
    scores = model_selection.cross_val_score(model, x, y, cv=3, error_score="raise")
    assert (scores > 0.85).all()
    again = base.clone(model).fit(x, y)
    np.testing.assert_array_equal(again.predict(x).ravel(), predicted)


@pytest.mark.parametrize("kind", ["binary", "softmax"])
def test_catboost_reports_metrics_by_a_public_name(kind):
    x, y = CANCER if kind == "binary" else IRIS
    metric = getattr(xentrs.catboost, f"{kind}_metric")
    model = catboost_model(kind, y, metric).fit(x, y, eval_set=(x, y))
    name = {"binary": "BinaryMetric", "softmax": "SoftmaxMetric"}[kind]
    assert {part: [*found] for part, found in model.get_best_score().items()} == {
        "learn": [name],
        "validation": [name],
    }
    assert isinstance(metric, getattr(xentrs.catboost, name))


@pytest.mark.parametrize(
    ("kind", "data", "metric"),
    [
        ("softmax", "iris", "softmax_metric"),
        ("softmax", "cancer", "softmax_metric"),
        ("softmax", "cancer", "Logloss"),
        ("softmax", "cancer", "Accuracy"),
        ("binary", "iris", "MultiClass"),
        ("binary", "cancer", "MultiClass"),
    ],
)
def test_catboost_with_the_objective_of_another_number_of_classes(kind, data, metric):
    """CatBoost asks the objective for derivatives that it does not have; it says what to do."""
    x, y = IRIS if data == "iris" else CANCER
    objective = getattr(xentrs.catboost, kind)(label_smoothing=0.1)
    model = catboost.CatBoostClassifier(
        loss_function=objective,
        eval_metric=getattr(xentrs.catboost, metric, metric),
        iterations=1,
        verbose=0,
        allow_writing_files=False,
    )
    with pytest.raises(catboost.CatBoostError) as caught:
        model.fit(x, y)
    # In one process CatBoost repeats the traceback of an earlier error before it.
    message = str(caught.value).strip().splitlines()[-1]
    other = "softmax" if kind == "binary" else "binary"
    assert message.startswith("ValueError: CatBoost takes the model for one of ")
    assert ("several" if kind == "binary" else "two") + " classes, with" in message
    assert repr(objective) in message
    assert "pass **objective.params(y) to the model" in message
    assert f"xentrs.catboost.{kind}_metric" in message
    assert f"take xentrs.catboost.{other}" in message


def test_catboost_trains_no_softmax_with_a_teacher():
    """As docs/boosting.md says: the number of a row is above the number of classes."""
    x, y = IRIS
    objective = xentrs.catboost.softmax(teacher=np.full((len(y), 3), 1 / 3))
    rows = np.arange(len(y))
    for params in (objective.params(rows), {}):
        options = {"loss_function": objective, "eval_metric": "MultiClass", "iterations": 1}
        model = catboost.CatBoost(options | params | {"allow_writing_files": False, "verbose": 0})
        with pytest.raises(catboost.CatBoostError):
            model.fit(x, rows)


# The formulas


def softmax_loss(x, t, *, weight=None, label_smoothing=0.0, gamma=0.0):
    """Return the loss of one sample, by the formula."""
    logs = x - x.max() - np.log(np.exp(x - x.max()).sum())
    t = (1 - label_smoothing) * t + label_smoothing / len(x)
    weight = np.ones(len(x)) if weight is None else np.asarray(weight)
    return -(weight * t * (1 - np.exp(logs)) ** gamma * logs).sum()


def derivatives(library, objective, scores, labels, weight):
    """Return gradient and Hessian of the loss as an objective returns them, in NumPy's form."""
    if library != "catboost":
        grad, hess = objective(labels, scores, sample_weight=weight)
        return np.float64(grad), np.float64(hess)
    if scores.ndim == 1:
        grad, hess = np.array(objective.calc_ders_range(scores, labels, weight)).T
        return -grad, -hess
    rows = list(map(objective.calc_ders_multi, scores.tolist(), labels, weight))
    return -np.array([grad for grad, _ in rows]), -np.array([np.diag(h) for _, h in rows])


FACTORS = {"xgboost": lambda k: 2, "lightgbm": lambda k: k / (k - 1), "catboost": lambda k: 1}
OPTIONS = [
    {},
    {"weight": (1.0, 2.0, 0.5)},
    {"label_smoothing": 0.2},
    {"weight": (1.0, 2.0, 0.0), "label_smoothing": 0.2},
    {"gamma": 2.0},
    {"gamma": 0.5, "weight": (1.0, 2.0, 0.5)},
]


def with_soft_labels(options):
    """Pair sets of options with class indices and, but for focal loss, with a teacher."""
    for one in options:
        name = ", ".join(f"{key}={value}" for key, value in one.items()) or "plain"
        yield pytest.param(one, False, id=name)
        if "gamma" not in one:
            yield pytest.param(one, True, id=f"{name}, teacher")


def difference(f, x, step):
    """Return the derivatives of a function of several numbers in each of them."""
    return np.array([(f(x + e) - f(x - e)) / (2 * step) for e in step * np.eye(len(x))])


@every_library
@pytest.mark.parametrize(("options", "soft"), [*with_soft_labels(OPTIONS)])
def test_formula_of_classes(library, options, soft):
    rng = np.random.default_rng(3)
    scores, weight = 2 * rng.normal(size=(40, 3)), rng.uniform(0.5, 2, 40)
    labels = rng.integers(0, 3, 40)
    targets = np.eye(3)[labels]
    if soft:
        teacher = rng.dirichlet(np.ones(3), 60)
        labels = rng.integers(0, 60, 40)
        targets, options = teacher[labels], options | {"teacher": teacher}
    objective = MODULES[library].softmax(**options)
    grad, hess = derivatives(library, objective, scores, labels, weight)
    plain = {key: value for key, value in options.items() if key != "teacher"}
    for i in range(40):

        def slope(x, i=i):
            return difference(lambda x: weight[i] * softmax_loss(x, targets[i], **plain), x, 1e-5)

        np.testing.assert_allclose(grad[i], slope(scores[i]), rtol=1e-5, atol=1e-8)
        curvature = np.diag(difference(slope, scores[i], 1e-3))
        right = np.maximum(curvature * FACTORS[library](3), 1e-16)
        np.testing.assert_allclose(hess[i], right, rtol=1e-3, atol=1e-4)
    assert (hess > 0).all() or library != "xgboost"


PAIR_OPTIONS = [one | {"weight": one["weight"][:2]} if "weight" in one else one for one in OPTIONS]


@every_library
@pytest.mark.parametrize(("options", "soft"), [*with_soft_labels(PAIR_OPTIONS)])
def test_formula_of_two_classes(library, options, soft):
    rng = np.random.default_rng(4)
    scores, weight = 2 * rng.normal(size=40), rng.uniform(0.5, 2, 40)
    labels = rng.integers(0, 2, 40).astype(np.float64)
    ones = labels
    if soft:
        teacher = rng.random(60)
        labels = rng.integers(0, 60, 40)
        ones, options = teacher[labels], options | {"teacher": teacher}
    objective = MODULES[library].binary(**options)
    grad, hess = derivatives(library, objective, scores, labels, weight)
    plain = {key: value for key, value in options.items() if key != "teacher"}
    for i in range(40):

        def loss(x, i=i):
            target = np.array([1 - ones[i], ones[i]])
            return weight[i] * softmax_loss(np.array([0, x]), target, **plain)

        def slope(x, loss=loss):
            return (loss(x + 1e-5) - loss(x - 1e-5)) / 2e-5

        assert grad[i] == pytest.approx(slope(scores[i]), rel=1e-5, abs=1e-8)
        curvature = (slope(scores[i] + 1e-3) - slope(scores[i] - 1e-3)) / 2e-3
        assert hess[i] == pytest.approx(max(curvature, 1e-16), rel=1e-3, abs=1e-4)


@every_library
@pytest.mark.parametrize("kind", ["softmax", "binary"])
def test_focal_hessians_have_a_floor(library, kind):
    scores = np.linspace(-8, 8, 41)
    scores = scores if kind == "binary" else np.stack([-scores, scores], axis=-1)
    objective = getattr(MODULES[library], kind)(gamma=3)
    _, hess = derivatives(library, objective, scores, np.zeros(41), np.ones(41))
    assert (hess > 0).all()
    assert (hess < 1e-15).any(), "no Hessian here is negative"


# Objects


@every_library
@pytest.mark.parametrize("kind", ["softmax", "binary"])
def test_pickle_and_copy(library, kind):
    teacher = np.full((3, 2), 0.5) if kind == "softmax" else np.full(3, 0.5)
    for options in (
        {},
        {"weight": [1, 2]},
        {"teacher": teacher, "label_smoothing": 0.1},
        {"gamma": 2},
    ):
        objective = getattr(MODULES[library], kind)(**options)
        for again in (
            pickle.loads(pickle.dumps(objective)),
            copy.deepcopy(objective),
            copy.copy(objective),
        ):
            assert again == objective
            assert hash(again) == hash(objective)
            assert repr(again) == repr(objective)
        with pytest.raises(AttributeError):
            objective.gamma = 1.0
        assert copy.deepcopy(objective) is objective  # what scikit-learn's `clone` looks at
    assert getattr(MODULES[library], kind)() != getattr(MODULES[library], kind)(gamma=1)
    for name in ("softmax_metric", "binary_metric"):
        metric = getattr(MODULES[library], name)
        for one in (metric, metric.of_probabilities):
            assert pickle.loads(pickle.dumps(one)) is one
            assert copy.deepcopy(one) is one


def raw_accuracy(model, x, y):
    """Return the share of right classes, of the raw scores of LightGBM."""
    raw = model.predict_proba(x, raw_score=True)
    return np.mean(model.objective.predict_proba(raw).argmax(axis=1) == y)


@every_library
@pytest.mark.parametrize("classes", [2, 3])
def test_grid_search_over_processes(library, classes):
    """XGBoost and CatBoost with `params` and scikit-learn's own scores; LightGBM with a scorer."""
    x, y = CANCER if classes == 2 else IRIS
    kind = "binary" if classes == 2 else "softmax"
    objective = getattr(MODULES[library], kind)(label_smoothing=0.05)
    model = {
        "xgboost": lambda: xgboost.XGBClassifier(
            **objective.params(y) | {"objective": objective}, n_estimators=4, n_jobs=1
        ),
        "lightgbm": lambda: lightgbm.LGBMClassifier(
            n_estimators=10, verbose=-1, n_jobs=1, objective=objective
        ),
        "catboost": lambda: catboost_model(
            kind, y, getattr(xentrs.catboost, f"{kind}_metric"), learning_rate=0.1
        ),
    }[library]()
    scores = [raw_accuracy] if library == "lightgbm" else [None, "accuracy", "neg_log_loss"]
    for scoring in scores:
        search = model_selection.GridSearchCV(
            model,
            {"learning_rate": [0.1, 0.3]},
            n_jobs=2,
            cv=3,
            scoring=scoring,
            error_score="raise",
        )
        search.fit(x, y)
        assert search.best_score_ > (-0.5 if scoring == "neg_log_loss" else 0.9)


@pytest.mark.filterwarnings("ignore:Cannot compute class probabilities")
def test_predictions_of_a_lightgbm_classifier_are_raw_scores():
    """As docs/boosting.md says, for which reason its `score` fails."""
    for x, y, kind in ((*CANCER, "binary"), (*IRIS, "softmax")):
        objective = getattr(xentrs.lightgbm, kind)()
        model = lightgbm.LGBMClassifier(objective=objective, n_estimators=2, verbose=-1).fit(x, y)
        raw = model.predict_proba(x, raw_score=True)
        np.testing.assert_array_equal(model.predict(x), raw)
        np.testing.assert_array_equal(model.predict_proba(x), raw)
        with pytest.raises(ValueError, match="continuous"):
            model.score(x, y)


@every_library
def test_pickled_models(library):
    x, y = IRIS
    objective = MODULES[library].softmax(label_smoothing=0.1)
    model = {
        "xgboost": lambda: xgboost.XGBClassifier(
            **objective.params(y) | {"objective": objective}, n_estimators=3, n_jobs=1
        ),
        "lightgbm": lambda: lightgbm.LGBMClassifier(
            objective=objective, n_estimators=3, verbose=-1, n_jobs=1
        ),
        "catboost": lambda: catboost_model("softmax", y, xentrs.catboost.softmax_metric),
    }[library]().fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    raw = {"lightgbm": {"raw_score": True}}.get(library, {})
    np.testing.assert_array_equal(again.predict_proba(x, **raw), model.predict_proba(x, **raw))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_arrays_are_kept_between_rounds(library):
    objective = MODULES[library].softmax()
    scores = np.random.default_rng(0).normal(size=(30, 4))
    one = objective(np.zeros(30), scores)
    two = objective(np.ones(30), scores)
    assert not any(np.shares_memory(a, b) for a in one for b in two)  # somebody holds the first
    addresses = [a.ctypes.data for a in two]
    del two
    again = objective(np.zeros(30), scores)
    assert [a.ctypes.data for a in again] == addresses
    view = again[0][3:]
    del again
    assert not np.shares_memory(objective(np.ones(30), scores)[0], view)
    np.testing.assert_array_equal(view, one[0][3:])
    other = objective(np.zeros(20), scores[:20])
    assert other[0].shape == (20, 4)


def test_clone_of_catboost():
    for objective in (xentrs.catboost.binary(gamma=1.0), xentrs.catboost.softmax()):
        model = catboost.CatBoostClassifier(loss_function=objective, eval_metric="Accuracy")
        assert base.clone(model).get_params()["loss_function"] is objective


def test_parameters_of_catboost():
    binary, softmax = xentrs.catboost.binary(), xentrs.catboost.softmax()
    assert binary.params([0, 1, 1]) == {"classes_count": 2, "class_names": (0, 1)}
    assert binary.params([0, 0.3]) == {}
    assert softmax.params([0, 1, 2]) == {"classes_count": 3, "class_names": (0, 1, 2)}
    more = xentrs.catboost.softmax(weight=[1, 1, 1, 2]).params([0, 1, 2])
    assert more == {"classes_count": 4, "class_names": (0, 1, 2, 3)}
    teacher = xentrs.catboost.softmax(teacher=np.full((5, 2), 0.5))
    assert teacher.params([0, 4]) == {"classes_count": 2}


# Metrics


@pytest.mark.parametrize("classes", [2, 10])
@weighted
def test_metrics_of_xgboost(classes, weighted):
    x, y = CANCER if classes == 2 else DIGITS
    module, weight = xentrs.xgboost, weights(y, weighted)
    objective = module.binary() if classes == 2 else module.softmax()
    metric = module.binary_metric if classes == 2 else module.softmax_metric
    data = xgboost.DMatrix(x, y, weight=weight)
    params = objective.params(y, weight)
    theirs = "logloss" if classes == 2 else "mlogloss"

    def train(metric, **more):
        seen = {}
        arguments = {"evals": [(data, "train")], "evals_result": seen, "verbose_eval": False}
        xgboost.train(
            params | {"eval_metric": theirs}, data, 4, custom_metric=metric, **arguments, **more
        )
        return seen["train"]

    for metrics in (train(metric, obj=objective), train(metric.of_probabilities)):
        (ours,) = (values for name, values in metrics.items() if name != theirs)
        np.testing.assert_allclose(ours, metrics[theirs], rtol=1e-5)
    with pytest.raises(ValueError, match=r"passed probabilities.*take xentrs\.xgboost\."):
        train(metric)
    with pytest.raises(ValueError, match="passed margins"):
        train(metric.of_probabilities, obj=objective)
    model = xgboost.XGBClassifier(
        **params | {"objective": objective, "n_estimators": 4, "eval_metric": metric}
    )
    model.fit(
        x,
        y,
        sample_weight=weight,
        eval_set=[(x, y)],
        sample_weight_eval_set=[weight] if weighted else None,
        verbose=False,
    )
    assert "cross_entropy" in model.evals_result()["validation_0"]


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@pytest.mark.parametrize("classes", [2, 10])
@weighted
def test_metrics_of_lightgbm(classes, weighted):
    x, y = CANCER if classes == 2 else DIGITS
    module, weight = xentrs.lightgbm, weights(y, weighted)
    objective = module.binary() if classes == 2 else module.softmax()
    metric = module.binary_metric if classes == 2 else module.softmax_metric
    built_in, name = (
        ("binary", "binary_logloss") if classes == 2 else ("multiclass", "multi_logloss")
    )

    def train(objective, metric):
        seen = {}
        params = QUIET | {
            "objective": objective,
            "metric": name,
            "num_class": 1 if classes == 2 else 10,
        }
        data = lightgbm.Dataset(x, y, weight=weight)
        lightgbm.train(
            params,
            data,
            4,
            valid_sets=[data],
            feval=metric,
            callbacks=[lightgbm.record_evaluation(seen)],
        )
        return seen["training"]

    metrics = train(built_in, metric.of_probabilities)
    np.testing.assert_allclose(metrics["log_loss"], metrics[name], rtol=1e-7)
    np.testing.assert_allclose(train(objective, metric)["cross_entropy"], metrics[name], rtol=1e-6)
    with pytest.raises(ValueError, match="passed probabilities"):
        train(built_in, metric)
    with pytest.raises(ValueError, match="passed margins"):
        train(objective, metric.of_probabilities)
    model = lightgbm.LGBMClassifier(objective=objective, n_estimators=4, verbose=-1)
    model.fit(x, y, sample_weight=weight, eval_set=[(x, y)], eval_metric=metric)
    (metrics,) = model.evals_result_.values()
    assert "cross_entropy" in metrics


@every_library
def test_margins_of_a_model_without_trees_are_margins(library):
    module = MODULES[library]
    labels = np.arange(10) % 2
    assert module.softmax_metric(labels, np.full((10, 2), 0.5)) is not None
    assert module.binary_metric(labels, np.full(10, 0.5)) is not None
    rare = np.ones(100)
    rare[0] = 0
    assert module.binary_metric(rare, np.random.default_rng(0).uniform(0.2, 0.4, 100)) is not None


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.65, 0.8])
def test_first_margins_are_margins(share, rate):
    """After a few trees all margins may lie in [0, 1]: they are not refused. Probabilities are."""
    rng = np.random.default_rng(int(100 * share))
    x = rng.normal(size=(600, 4))
    y = (rng.random(600) < 1 / (1 + np.exp(-np.log(share / (1 - share)) - 2 * x[:, 0]))) * 1.0

    objective, metric = xentrs.lightgbm.binary(), xentrs.lightgbm.binary_metric
    params, initial = QUIET | {"metric": "None"}, objective.params(y)

    def train(objective, rate, **initial):
        data = lightgbm.Dataset(x, y, **initial)
        options = params | {"objective": objective, "learning_rate": rate}
        lightgbm.train(options, data, 30, valid_sets=[data], feval=metric)

    train(objective, rate, **initial)
    with pytest.raises(ValueError, match="passed probabilities"):
        train("binary", 0.1)
    model = lightgbm.LGBMClassifier(objective=objective, n_estimators=5, learning_rate=rate)
    model.set_params(verbose=-1).fit(x, y, eval_set=[(x, y)], eval_metric=metric, **initial)

    objective, metric, data = (
        xentrs.xgboost.binary(),
        xentrs.xgboost.binary_metric,
        xgboost.DMatrix(x, y),
    )
    settings = objective.params(y) | {"eta": rate}
    options = {"custom_metric": metric, "evals": [(data, "")], "verbose_eval": False}
    xgboost.train(settings, data, 30, obj=objective, **options)
    with pytest.raises(ValueError, match="passed probabilities"):
        xgboost.train(settings, data, 30, **options)


# Errors


@every_library
@pytest.mark.parametrize("kind", ["softmax", "binary"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], not 1.5"),
        ({"label_smoothing": np.nan}, "label_smoothing must be in"),
        ({"gamma": -1}, "gamma must be finite and at least 0, not -1"),
        ({"weight": [1, -1]}, "weight must have a number for each class"),
        ({"weight": [[1, 1]]}, "weight must have a number for each class"),
        ({"teacher": np.ones((2, 2, 2))}, "teacher must be probabilities of shape"),
        ({"teacher": np.ones((60, 0))}, r"of shape .*, not of shape \(60, 0\)"),
        ({"teacher": np.ones(0)}, r"of shape .*, not of shape \(0,\)"),
        ({"teacher": np.ones((0, 3))}, r"of shape .*, not of shape \(0, 3\)"),
    ],
)
def test_options_out_of_range(library, kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(MODULES[library], kind)(**options)


@every_library
@pytest.mark.parametrize("kind", ["softmax", "binary"])
@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.1])
def test_teachers_out_of_range(library, kind, wrong):
    teacher = np.array([0.5, wrong] if kind == "binary" else [[0.5, 0.5], [wrong, 0.5]])
    place = r"\[1\]" if kind == "binary" else r"\[1, 0\]"
    with pytest.raises(ValueError, match=rf"teacher{place} is {wrong}, but must be in"):
        getattr(MODULES[library], kind)(teacher=teacher)


@every_library
@pytest.mark.parametrize("kind", ["softmax", "binary"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1, "label_smoothing": 0.1}, "gamma and label_smoothing exclude each other"),
        ({"gamma": 1, "teacher": np.ones((2, 2))}, "gamma and teacher exclude each other"),
        ({"gamma": "1"}, "gamma must be a number, not '1'"),
        ({"label_smoothing": None}, "label_smoothing must be a number, not None"),
        ({"weight": ["a", "b"]}, "weight must be numbers, not of dtype <U1"),
        ({"teacher": np.ones(2, int)}, "teacher must be probabilities of shape .*int64"),
    ],
)
def test_options_of_a_wrong_type(library, kind, options, message):
    with pytest.raises(TypeError, match=message):
        getattr(MODULES[library], kind)(**options)


@every_library
def test_labels_that_are_no_numbers(library):
    for kind in ("softmax", "binary"):
        with pytest.raises(TypeError, match="y must be numbers"):
            getattr(MODULES[library], kind)().params(["a", "b"])


@every_library
def test_missing_labels(library):
    for kind in ("softmax", "binary"):
        with pytest.raises(ValueError, match=r"^y has missing values: y\[1\] is NaN$"):
            getattr(MODULES[library], kind)().params([0.0, np.nan, 1.0])


@every_library
def test_labels_that_are_not_of_two_classes(library):
    objective = MODULES[library].binary()
    for wrong in (2, -1, 1.5):
        with pytest.raises(ValueError, match=rf"^labels must be in \[0, 1\].*label 2 is {wrong}$"):
            objective.params([0, 1, wrong])
    teacher = MODULES[library].binary(teacher=np.array([0.5, 0.25]))
    with pytest.raises(ValueError, match="number of a row, from 0 to 1, but label 1 is 2"):
        teacher.params([0, 2])


@every_library
@pytest.mark.parametrize("kind", ["softmax", "binary"])
def test_weights_of_a_training(library, kind):
    params = getattr(MODULES[library], kind)().params
    for wrong in (-1.0, np.inf, -np.inf):
        message = rf"^sample_weight\[1\] is {wrong}, but must be at least 0 and finite$"
        with pytest.raises(ValueError, match=message):
            params([0, 1, 1], sample_weight=[1.0, wrong, 2.0])
    with pytest.raises(ValueError, match=r"^sample_weight has missing values"):
        params([0, 1, 1], sample_weight=[1.0, np.nan, 2.0])
    with pytest.raises(ValueError, match=r"^sample_weight has shape \(2,\), but y has 3 samples$"):
        params([0, 1, 1], sample_weight=[1.0, 2.0])
    for wrong, total in ((0.0, 0.0), (1e308, np.inf)):
        with pytest.raises(ValueError, match=f"^sample_weight has a sum of {total}, but it must"):
            params([0, 1, 1], sample_weight=[wrong] * 3)
    with pytest.raises(ValueError, match=r"^y has no samples$"):
        params([])


@every_library
def test_classes_without_a_weight(library):
    softmax = MODULES[library].softmax(weight=[0, 0, 1])
    with pytest.raises(ValueError, match=r"^weight is \(0.0, 0.0, 1.0\): no class of y has"):
        softmax.params([0, 1, 1])
    softmax.params([0, 1, 2])


@every_library
@pytest.mark.parametrize("kind", ["softmax", "binary"])
@pytest.mark.parametrize("of_probabilities", [False, True])
def test_metrics_without_a_weight(library, kind, of_probabilities):
    y = np.array([0.0, 1.0, 1.0])
    predictions = np.array([0.1, 0.9, 0.8])  # as probabilities may be, and margins
    if kind == "softmax":
        predictions = np.stack([1 - predictions, predictions], axis=1)
        predictions = predictions if of_probabilities else 2 * predictions
    metric = getattr(MODULES[library], f"{kind}_metric")
    metric = metric.of_probabilities if of_probabilities else metric
    result = metric(y, predictions, np.zeros(3))
    assert np.isnan(result if library == "xgboost" else result[1])
    if library == "catboost":  # which adds up what it gets of parts
        assert metric.evaluate(predictions.reshape(3, -1).T, y, np.zeros(3)) == (0.0, 0.0)
        assert np.isnan(metric.get_final_error(0.0, 0.0))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_arguments_that_do_not_fit(library):
    module = MODULES[library]
    with pytest.raises(ValueError, match="scores must have shape"):
        module.softmax()(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="scores must have shape"):
        module.binary()(np.zeros(3), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"label 1 is 2\.0"):
        module.binary()(np.array([0, 2.0]), np.zeros(2))
    with pytest.raises(IndexError, match="target"):
        module.softmax()(np.array([0, 3.0]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="number of a row, from 0 to 4, but label 1 is 5"):
        module.softmax(teacher=np.full((5, 3), 1 / 3))(np.array([0, 5]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="teacher has 2 classes, but the scores have 3"):
        module.softmax(teacher=np.full((5, 2), 0.5))(np.array([0, 1]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"weight"):
        module.softmax(weight=[1, 2])(np.array([0, 1]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least two classes"):
        module.softmax().params(np.zeros(4))
    for labels, place in (([0, 1.5], "1 is 1.5"), ([0, -1], "1 is -1"), ([np.inf, 1], "0 is inf")):
        with pytest.raises(ValueError, match=f"class indices 0, 1, 2.*label {place}"):
            module.softmax().params(np.array(labels))
    data = xgboost.DMatrix(np.zeros((2, 1)), [0, 1])
    with pytest.raises(TypeError, match="sample_weight"):
        module.binary()(np.zeros(2), data, sample_weight=np.ones(2))


@every_library
def test_labels_and_scores_of_other_shapes(library):
    module = MODULES[library]
    for labels in (np.array([[0], [1], [1]]), [[0, 1], [1, 0]], 1):
        with pytest.raises(ValueError, match=r"y must have shape \(samples,\), not \("):
            module.binary().params(labels)
    with pytest.raises(TypeError, match="y must be numbers"):
        module.binary().params(None)
    for labels in (np.zeros((2, 3, 4)), 1):
        with pytest.raises(ValueError, match=r"y must have shape \(samples,\) or \(samples, cl"):
            module.softmax().params(labels)
    teacher = module.softmax(teacher=np.full((5, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"y must have shape \(samples,\), not \(1, 2\)"):
        teacher.params([[0, 1]])
    for scores in (np.zeros((30, 1)), np.zeros((30, 4)), 0.0):
        with pytest.raises(ValueError, match=r"raw must have shape \(samples,\), not \("):
            module.binary().predict_proba(scores)
    for scores in (np.zeros(30), np.zeros((2, 3, 4))):
        with pytest.raises(ValueError, match=r"raw must have shape \(samples, classes\), not \("):
            module.softmax().predict_proba(scores)


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_derivatives_are_float32_whatever_the_scores_are(library, gamma, dtype):
    module = MODULES[library]
    y = np.arange(6) % 3
    for kind, labels, shape in (("softmax", y, (6, 3)), ("binary", y % 2, 6)):
        scores = np.linspace(-2, 2, np.prod(shape)).reshape(shape).astype(dtype)
        objective = getattr(module, kind)(gamma=gamma)
        found = objective(labels, scores)
        single = objective(labels, scores.astype(np.float32))
        for array, right in zip(found, single, strict=True):
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, right, rtol=2e-3 if dtype == np.float16 else 1e-6)


@every_library
def test_examples(library):
    """The examples of the docstrings."""
    assert doctest.testmod(MODULES[library]).attempted >= 4
    assert doctest.testmod(MODULES[library]).failed == 0
