"""Falkon: Gaussian-kernel ridge regression, with folds and permutations in closed form.

Rows of features enter, with their labels and groups. One score a class leaves, and held-out scores
of every row under any number of labellings; `classifier.FalkonClassifier` is the scikit-learn face,
`head.FalkonHead` what the rest of toptune asks.
"""
