"""Classifiers of rows of few and meaningful numbers such as burst parameters.

Rows enter, NaN where a value is not defined. Scores of each class leave, by logistic regression
(`logistic`) or by ridge regression with a Gaussian kernel (`gaussian`), as `head.ParametersHead` is
asked.
"""
