"""The splits of a decision tree, found again by `xentrs.entropy`, on scikit-learn's wine data.

A tree with the criterion "entropy" takes, at each node, the feature and the threshold whose two
sides have the least entropy, weighted by their samples. One call of `xentrs.entropy` gives the
entropies of all splits of a node: counts of the classes are all it needs. Each split of
scikit-learn's tree is held against the best one that is found this way.

Run it: ``python examples/gallery/tree_impurity.py``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_wine
from sklearn.tree import DecisionTreeClassifier

import xentrs

Array = NDArray[np.float64]
Targets = NDArray[np.int64]


@dataclass
class Splits:
    """All splits of a node: after each sample in the order of each feature."""

    thresholds: Array  # (samples - 1, features)
    impurity: Array  # the weighted entropy in bits, inf where a threshold separates nothing

    def best(self) -> tuple[int, float, float]:
        """Return feature, threshold and impurity of the best split."""
        row, feature = np.unravel_index(self.impurity.argmin(), self.impurity.shape)
        return int(feature), float(self.thresholds[row, feature]), float(self.impurity.min())

    def of(self, feature: int, threshold: float) -> float:
        """Return the impurity of the split that is nearest to a threshold."""
        distance = np.abs(self.thresholds[:, feature] - threshold)
        distance[np.isinf(self.impurity[:, feature])] = np.inf
        return float(self.impurity[distance.argmin(), feature])


def splits(samples: Array, target: Targets, classes: int) -> Splits:
    """Evaluate every split of a node."""
    order = samples.argsort(axis=0, kind="stable")
    ordered = np.take_along_axis(samples, order, axis=0)
    one_hot = np.eye(classes)[target]
    left = one_hot[order].cumsum(axis=0)[:-1]  # counts of shape (samples - 1, features, classes)
    right = one_hot.sum(axis=0) - left
    bits = xentrs.entropy(np.stack([left, right]), base=2)  # the last axis is that of the classes
    share = np.arange(1, len(samples))[:, None] / len(samples)
    impurity = share * bits[0] + (1 - share) * bits[1]
    impurity[ordered[:-1] == ordered[1:]] = np.inf
    return Splits((ordered[:-1] + ordered[1:]) / 2, impurity)


def draw(root: Splits, names: list[str], tree: DecisionTreeClassifier, file: Path) -> None:
    import drawing

    figure, axes = drawing.figure(6.5, 3.2)
    best = np.argsort(root.impurity.min(axis=0))[:3]
    for feature in best:
        finite = np.isfinite(root.impurity[:, feature])
        low, high = root.thresholds[finite, feature][[0, -1]]
        scaled = (root.thresholds[finite, feature] - low) / (high - low)
        axes.plot(scaled, root.impurity[finite, feature], label=names[feature])
        if feature == tree.tree_.feature[0]:
            at = (tree.tree_.threshold[0] - low) / (high - low)
            axes.plot(at, root.of(feature, tree.tree_.threshold[0]), "ko", label="scikit-learn's")
    axes.set(
        xlabel="threshold, from the least to the largest", ylabel="entropy after the split (bits)"
    )
    axes.legend()
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/tree_impurity.svg"))
    options = parser.parse_args(arguments)

    data = load_wine()
    samples, target, names = data.data, data.target, list(data.feature_names)
    model = DecisionTreeClassifier(criterion="entropy", random_state=0).fit(samples, target)
    tree, path = model.tree_, model.decision_path(samples)

    print("node   samples   entropy   after split   best found   split")
    for node in range(tree.node_count):
        here = path[:, [node]].toarray().ravel().astype(bool)
        counts = np.bincount(target[here], minlength=3)
        entropy = float(xentrs.entropy(counts.astype(float), base=2))
        assert abs(entropy - tree.impurity[node]) < 1e-12, "the impurities differ"
        if tree.children_left[node] < 0:
            continue
        found = splits(samples[here], target[here], 3)
        theirs = found.of(tree.feature[node], tree.threshold[node])
        feature, threshold, best = found.best()
        same = feature == tree.feature[node] and np.isclose(threshold, tree.threshold[node])
        split = f"{names[tree.feature[node]]} <= {tree.threshold[node]:.4g}"
        print(
            f"{node:4}   {here.sum():7}   {entropy:7.4f}   {theirs:11.4f}   {best:10.4f}   {split}"
            f"{'' if same else f' (as good: {names[feature]} <= {threshold:.4g})'}"
        )
    print(f"\nThe entropies of all {tree.node_count} nodes are scikit-learn's, to 1e-12")
    draw(splits(samples, target, 3), names, model, options.picture)


if __name__ == "__main__":
    main()
