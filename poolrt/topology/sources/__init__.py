"""The three that know the machine, each behind a small protocol: NVML, CUDA, and the files of Linux."""
