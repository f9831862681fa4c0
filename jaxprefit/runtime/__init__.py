"""The machine a run stands on: devices, processes, preemption, memory, files, progress."""
