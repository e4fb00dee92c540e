"""The metrics of the paper's tables (sections 4.1 to 4.5, Table 9), each equal to its reference item by item.

No torch here. A metric gives per-item scores; `tally.Tally` holds sums and
counts and is the one place that divides.

| module               | benchmark (paper table)                                 | reference
|----------------------|---------------------------------------------------------|-----------
| `vqa`                | VQAv2, OKVQA, VizWiz (4), TextVQA (5)                   | VQA evaluation as the release runs it
| `gqa`, `exact`       | GQA (4); OCR-VQA, AI2D (5)                              | exact match of the release
| `anls`               | DocVQA (5)                                              | ANLS with the threshold at 0.5
| `relaxed`            | ChartQA (5)                                             | 5 % tolerance, both argument orders
| `ptb`, `cider`, ...  | Flickr30K, NoCaps (4)                                   | pycocoevalcap 1.2, without Java
| `grounding`          | RefCOCO, RefCOCO+, RefCOCOg, GRIT (6)                   | IoU in float32, coordinates over 999
| `multiple_choice`    | ScienceQA (4), SEED-Bench (7), MMBench, MMLU (11)       | mean negative log-likelihood
| `mme`, `touchstone`  | MME, TouchStone (7)                                     | the benchmarks' own rules
"""
