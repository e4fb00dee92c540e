"""The score card (paper section 4 and Table 9): benchmarks, the run over them, the report; metrics/ holds the rules."""
