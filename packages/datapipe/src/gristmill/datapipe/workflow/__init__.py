"""The DAG: stages over partitions and steps over whole runs, fingerprinted, cached and resumed."""
