"""Published data sets, one file each: their annotations are parsed once, for training and for evaluation.

    records(files, images)    the training view: records (or raw pairs), and what could not become one with its reason
    samples(source)           the evaluation view: questions with their answers, as `qwenvl eval run` asks them

Training takes what is whole and counts the rest, entry by entry; evaluation refuses a file with a broken entry, because
a score over some of the questions is no score. Which data sets there are stands in `table.py`.
"""
