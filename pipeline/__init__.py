"""How any stage runs: parameters, files, resumption, records, the command line. Imports none of fce, eval, reports."""
