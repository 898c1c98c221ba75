"""Oracle grades distilled into a probe head and a judge head on a frozen backbone, with calibrated thresholds."""
