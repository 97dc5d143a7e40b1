"""Regularised logistic regression, for rows of few and meaningful numbers such as burst parameters.

Rows enter, NaN where a value is not defined. Log-odds of each class against the others leave;
`classifier.LogisticClassifier` is the scikit-learn face, `head.LogisticHead` what the rest of
toptune asks.
"""
