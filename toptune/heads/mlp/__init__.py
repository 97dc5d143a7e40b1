"""The paper's network: one hidden layer, with the networks of all folds trained together.

Rows of features enter, with their labels and groups. Networks leave, and the logits of rows that
they have not seen; `classifier.MLPClassifier` is the scikit-learn face, `head.MLPHead` what the
rest of toptune asks.
"""
