"""Kernel means: a recording as a set of windows, compared with other recordings as a whole.

Rows of features of windows enter, with the recording (device and label) of each. Scores of windows
leave, whose mean over a recording is the prediction of a kernel ridge regression with one row a
recording; `classifier.RecordingsClassifier` is the scikit-learn face, `head.RecordingsHead` what
the rest of toptune asks.
"""
