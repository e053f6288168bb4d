"""Reading what people paste: the output of nvidia-smi, one file per format, each a pure function of one line."""
